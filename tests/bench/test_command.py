"""`jepa-fast bench`: a quick run from the command line's side, its record, and its refusals."""

from pathlib import Path

import pytest

from jepa_fast.bench import measure
from jepa_fast.bench.measure import Row, load_record, run_case
from jepa_fast.commands.bench import Bench, run
from jepa_fast.commands.errors import UsageError


def test_a_quick_run_prints_its_rows_and_saves_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Bench(("host_cost", "latent_loss"), quick=True, budget=0.05, save=True, results=tmp_path)
    assert run(config) == 0
    output = capsys.readouterr().out
    assert "latent_prediction_loss" in output
    assert "overhead" in output
    (path,) = tmp_path.iterdir()
    assert f"saved to {path}" in output
    record = load_record(path)
    assert [row.suite for row in record.rows] == ["host_cost"] * 2 + ["latent_loss"] * 2
    assert not any(row.reason for row in record.rows)
    assert all(row.time is not None for row in record.rows)


def test_an_interrupted_run_keeps_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = iter([run_case, interrupt])
    monkeypatch.setattr(measure, "run_case", lambda *args, **options: next(cases)(*args, **options))
    with pytest.raises(KeyboardInterrupt):
        run(Bench(("latent_loss",), quick=True, budget=0.05, save=True, results=tmp_path))
    (path,) = tmp_path.iterdir()
    assert f"stopped; what was measured is saved to {path}" in capsys.readouterr().out
    record = load_record(path)
    assert not record.complete
    assert [row.suite for row in record.rows] == ["latent_loss"]


def interrupt(*_: object, **__: object) -> list[Row]:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Bench(("emma",)), r"suite: expected some of .*attention, .*, got emma; did you mean ema\?"),
        (Bench(("EMA",)), r"suite: .*, got EMA; did you mean ema\?"),
        (Bench(against="SDPA"), r"--against: .*, got SDPA; did you mean sdpa\?"),
        (Bench(("ema",), budget=0.0), "--budget: expected seconds above 0, got 0"),
        (Bench(("ema",), budget=float("nan")), "--budget: expected seconds above 0, got nan"),
    ],
)
def test_bad_input_is_named(config: Bench, message: str) -> None:
    with pytest.raises((UsageError, ValueError), match=f"^{message}$"):
        run(config)


def test_a_results_folder_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path) -> None:
    occupied = tmp_path / "results"
    occupied.write_text("a file")
    with pytest.raises(UsageError, match=r"--results: .*results cannot be written"):
        run(Bench(("ema",), save=True, results=occupied))
