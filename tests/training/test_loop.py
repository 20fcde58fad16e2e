"""What the loop feeds a step, what it writes, and how it stops."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_fast.data import EpochBatches, normalize, open_folder
from jepa_fast.training import schedules
from jepa_fast.training.checkpoint import list_checkpoints, load_checkpoint
from jepa_fast.training.loop import NonFiniteLossError, TrainResult

Train = Callable[..., Any]


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_a_step_is_given_the_batch_masks_and_rates_of_its_number(train_noting: Train, pictures: Path) -> None:
    result = train_noting()
    dataset = open_folder(pictures, image_size=80)
    batches = EpochBatches(10, 4)
    assert len(result.step.calls) == len(result.losses) == 6
    for step, call in enumerate(result.step.calls):
        crops = torch.stack([dataset[key] for key in batches.batch(step)])
        # Pillow rounds to 8 bits after each of its two passes, and its weights to 22.
        assert ((call["pixels"] - normalize(crops)).abs() * 255 * 0.229).max() < 1.5
        assert call["masks"].context.shape[0] == 4
        assert call["masks"].target.shape[0] == 16
        assert call["masks"].target.dtype == torch.int64
        assert call["lr"] == schedules.learning_rate(step, total_steps=6, warmup_steps=1)
        assert call["weight_decay"] == schedules.weight_decay(step, total_steps=6)
        assert call["momentum"] == schedules.momentum(step, total_steps=6)


def test_every_step_has_masks_of_its_own(train_noting: Train) -> None:
    calls = train_noting().step.calls
    assert len({call["masks"].target.numpy().tobytes() for call in calls}) == 6


def test_schedules_and_precision_are_those_of_the_configuration(train_noting: Train) -> None:
    result = train_noting(
        precision="bfloat16",
        warmup_steps=3, start_lr=1e-5, lr=3e-4, final_lr=1e-7,
        weight_decay=0.1, final_weight_decay=0.0, momentum=0.9, final_momentum=0.99,
    )  # fmt: skip
    assert result.step.precision == "bfloat16"
    for step, call in enumerate(result.step.calls):
        assert call["lr"] == schedules.learning_rate(
            step, total_steps=6, warmup_steps=3, start=1e-5, peak=3e-4, final=1e-7
        )
        assert call["weight_decay"] == schedules.weight_decay(step, total_steps=6, start=0.1, final=0.0)
        assert call["momentum"] == schedules.momentum(step, total_steps=6, start=0.9, final=0.99)


@pytest.mark.parametrize("changes", [{}, {"workers": 2}, {"log_every": 1}, {"checkpoint_every": 1}])
def test_a_run_depends_on_its_seed_and_nothing_else(train_noting: Train, changes: dict[str, Any]) -> None:
    torch.manual_seed(123)  # the state that a caller leaves the global generator in must not matter
    first = train_noting(output=None)
    second = train_noting(**changes)
    other = train_noting(output=None, seed=1)
    assert first.losses == second.losses
    assert first.losses != other.losses


def test_epochs_count_whole_batches(train_noting: Train) -> None:
    assert len(train_noting(steps=None, epochs=4).losses) == 8


def test_the_log_and_the_metrics(train_noting: Train, log: io.StringIO, tmp_path: Path) -> None:
    result = train_noting(log_every=4)
    lines = log.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 4/6", "step 6/6"]
    assert f"loss {result.losses[5]:.4f}" in lines[1]
    assert "images/s" in lines[1]
    assert lines[1].endswith("0:00:00 left")
    table = rows(tmp_path / "run")
    assert [row["step"] for row in table] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in table] == result.losses
    assert table[2]["lr"] == result.step.calls[2]["lr"]
    assert table[2]["target_tokens"] == result.step.calls[2]["masks"].target.shape[1]
    assert 0 <= table[2]["data_wait"] <= 1
    assert table[2]["images_per_s"] > 0


def test_nothing_is_written_without_an_output_folder(
    train_noting: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert train_noting(output=None).checkpoint is None
    assert set(tmp_path.rglob("*")) == before


def test_checkpoints_come_at_intervals_and_at_the_end(train_noting: Train, tmp_path: Path) -> None:
    result = train_noting(steps=7, checkpoint_every=2, keep_checkpoints=3)
    checkpoints = list_checkpoints(tmp_path / "run")
    assert [path.name for path in checkpoints] == [
        "step_00000004.safetensors",
        "step_00000006.safetensors",
        "step_00000007.safetensors",
    ]
    assert result.checkpoint == checkpoints[-1]
    assert load_checkpoint(result.checkpoint)["training"] == {"weight": result.step.weight}


def test_skipped_files_are_reported(train_noting: Train, pictures: Path, log: io.StringIO) -> None:
    (pictures / "broken.png").write_bytes(b"")
    result: TrainResult = train_noting()
    assert [path.name for path, _ in result.skipped] == ["broken.png"]
    assert "samples: 10, files skipped: 1" in log.getvalue()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(
    train_noting: Train, noting_step: Any, tmp_path: Path, value: float
) -> None:
    class Diverging(noting_step):
        def step(self, *inputs: Any, **rates: float) -> torch.Tensor:
            loss: torch.Tensor = super().step(*inputs, **rates)
            return loss if len(self.calls) < 4 else loss.abs() * value

    with pytest.raises(NonFiniteLossError, match=rf"loss is {value} at step 4; last .*step_00000002"):
        train_noting(Diverging, checkpoint_every=2)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step_00000002.safetensors"]
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2]


def test_a_checkpoint_that_cannot_be_written_is_an_error(
    train_noting: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, state: object) -> None:
        raise OSError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr("jepa_fast.training.loop.save_checkpoint", fail)
    with pytest.raises(OSError, match=r"step_00000006.safetensors cannot be written"):
        train_noting()
