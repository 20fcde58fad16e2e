"""The figure of training runs: what is read, and that it is drawn."""

from pathlib import Path

import pytest
from PIL import Image

from jepa_fast.bench.report.training import main, read_losses, smooth

ROWS = ['{"step": 1, "loss": 3.0}', '{"step": 2, "loss": null}', '{"step": 3, "loss": 1.0}']


def test_losses_are_drawn_without_what_was_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(ROWS))
    assert read_losses(tmp_path / "a") == {1: 3.0, 3: 1.0}
    figure = tmp_path / "out" / "losses.png"
    main([str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(figure)])
    assert Image.open(figure).width > Image.open(figure).height


def test_means_are_of_the_steps_before() -> None:
    assert list(smooth([3.0, 1.0])) == [3.0, 2.0]
    assert list(smooth([0.0] * 20 + [20.0]))[-1] == 1.0


def test_a_run_without_losses_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(ROWS[1])
    with pytest.raises(ValueError, match="run: no losses in "):
        read_losses(tmp_path)
