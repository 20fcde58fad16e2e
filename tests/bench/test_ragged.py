"""Two runs side by side, with cut and with ragged masks: what they share, and what is counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepa_fast.bench import ragged
from jepa_fast.training.config import TrainConfig

SMALL = {"dim": 48, "depth": 1, "num_heads": 2, "mlp_dim": 96, "predictor_depth": 1, "predictor_dim": 48}
CONFIG = """
data = "{data}"
model = "ijepa_vitt8_128"
image_size = 80
batch_size = 4
device = "cpu"
[model_options]
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(20):
        picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        picture.resize((96, 80)).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path / "pictures"


def test_the_forms_differ_in_their_cuts_alone(pictures: Path) -> None:
    options: dict[str, Any] = {"model": "ijepa_vitt8_128", "image_size": 80, "batch_size": 4, "device": "cpu"}
    curves = ragged.train_both(
        TrainConfig(data=str(pictures), model_options=SMALL, **options), steps=4, every=2
    )
    cut, whole = curves["cut"], curves["ragged"]
    assert list(cut.held_out) == list(whole.held_out) == [0, 2, 4]
    assert cut.held_out[0] == whole.held_out[0]  # same weights, samples and masks
    assert cut.held_out[4] != whole.held_out[4]
    for few, all_tokens in zip(cut.tokens, whole.tokens, strict=True):
        assert all(a <= b for a, b in zip(few, all_tokens, strict=True))
    assert cut.used < whole.used
    assert len(cut.losses) == len(cut.seconds) == 4


def test_the_command_tells_and_draws(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, figure = tmp_path / "config.toml", tmp_path / "out" / "ragged.png"
    sizes = "\n".join(f"{name} = {value}" for name, value in SMALL.items())
    config.write_text(CONFIG.format(data=pictures) + sizes)
    ragged.main([str(config), "--steps", "2", "--every", "1", "--output", str(figure)])
    text = capsys.readouterr().out
    for line in (
        "context tokens of a sample",
        "microseconds of a token",
        "loss on all tokens of unseen samples",
    ):
        assert line in text
    assert Image.open(figure).width > 1000


def test_a_system_without_masks_is_refused(pictures: Path) -> None:
    config = TrainConfig(
        data=str(pictures), model="lejepa_vits8_128", image_size=32, local_size=16, device="cpu"
    )
    with pytest.raises(ValueError, match="model: expected a system with masks, got lejepa_vits8_128"):
        ragged.train_both(config, 1)
