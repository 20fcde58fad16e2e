"""A resumed run goes on bit for bit; a run that is another one is not resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_fast.training import loop
from jepa_fast.training.checkpoint import CheckpointError, checkpoint_path, list_checkpoints, load_checkpoint

Train = Callable[..., Any]


def leaves(state: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a nested state by their path."""
    if isinstance(state, dict):
        pairs = list(state.items())
    elif isinstance(state, list | tuple):
        pairs = list(enumerate(state))
    else:
        return {name: state}
    return {key: leaf for part, value in pairs for key, leaf in leaves(value, f"{name}/{part}").items()}


def assert_same(checkpoint: Path, other: Path) -> None:
    """Equal in every bit of the weights, the optimizer's state and the generators."""
    a, b = leaves(load_checkpoint(checkpoint)), leaves(load_checkpoint(other))
    assert list(a) == list(b)
    for name, value in a.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == b[name].dtype, name
            assert torch.equal(value, b[name]), name
        else:
            assert value == b[name], name


@pytest.mark.parametrize("stop", [3, 4], ids=["amid an epoch", "between epochs"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stopping_changes_nothing(train_small: Train, tmp_path: Path, stop: int, precision: str) -> None:
    straight = train_small(precision=precision, checkpoint_every=stop)
    torch.rand(7)  # the global generator is somewhere else
    checkpoint = checkpoint_path(tmp_path / "run", stop)
    resumed = train_small(precision=precision, output=tmp_path / "rest", resume=str(checkpoint))
    assert resumed.first_step == stop
    assert resumed.losses == straight.losses[stop:]
    assert_same(straight.checkpoint, resumed.checkpoint)
    for part in ("encoder", "predictor", "teacher", "optimizer"):
        before = leaves(load_checkpoint(checkpoint)["training"][part])
        after = leaves(load_checkpoint(straight.checkpoint)["training"][part])
        assert any(
            isinstance(leaf, torch.Tensor) and not torch.equal(leaf, after[name])
            for name, leaf in before.items()
        )


def test_random_numbers_drawn_in_training_go_on_too(train_noting: Train, tmp_path: Path) -> None:
    straight = train_noting(checkpoint_every=3)
    resumed = train_noting(output=tmp_path / "rest", resume=str(checkpoint_path(tmp_path / "run", 3)))
    assert resumed.losses == straight.losses[3:]


def test_latest_continues_the_folder_and_its_metrics(train_noting: Train, tmp_path: Path) -> None:
    straight = train_noting(checkpoint_every=2)
    metrics = tmp_path / "run" / "metrics.jsonl"
    before = [json.loads(line) for line in metrics.read_text().splitlines()]
    checkpoint_path(tmp_path / "run", 6).unlink()
    with metrics.open("a") as file:
        file.write('{"step": 7, "lo')  # a line that a crash cut off
    resumed = train_noting(resume="latest")
    assert resumed.first_step == 4
    assert resumed.losses == straight.losses[4:]
    after = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in after] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in after] == [row["loss"] for row in before]


def test_a_finished_run_has_nothing_left(train_noting: Train) -> None:
    checkpoint = train_noting().checkpoint
    result = train_noting(resume="latest")
    assert result.losses == []
    assert result.checkpoint == checkpoint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"seed: .*step_00000006.safetensors was trained with 0, got 1"),
        ({"lr": 1e-4}, r"lr: .* was trained with 0.001, got 0.0001"),
        ({"batch_size": 5}, r"batch_size: .* was trained with 4, got 5"),
        ({"steps": 7}, r"steps: .* was trained with 6, got 7"),
        (
            {"model": "ijepa_vits8_128"},
            r"model: .* was trained with 'ijepa_vitt8_128', got 'ijepa_vits8_128'",
        ),
        ({"image_size": 88}, r"image_size: .* was trained with 80, got 88"),
        ({"warmup_steps": 2}, r"warmup_steps: .* was trained with 1, got 2"),
        ({"precision": "bfloat16"}, r"precision: .* was trained with 'float32', got 'bfloat16'"),
    ],
)
def test_another_run_is_not_resumed(train_noting: Train, changes: dict[str, Any], message: str) -> None:
    train_noting()
    with pytest.raises(ValueError, match=message):
        train_noting(resume="latest", **changes)


def test_other_data_is_not_resumed(train_noting: Train, pictures: Path) -> None:
    train_noting()
    shutil.copy(pictures / "0.png", pictures / "new.png")
    with pytest.raises(ValueError, match=r"data: .* was trained on 10 samples, got 11 others"):
        train_noting(resume="latest")


def test_a_folder_is_continued_from_any_of_its_checkpoints(
    train_noting: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is later stays until the first new checkpoint is complete."""
    run = tmp_path / "run"
    straight = train_noting(checkpoint_every=2)
    rows = (run / "metrics.jsonl").read_text()
    os.truncate(checkpoint_path(run, 6), 100)
    resume = str(checkpoint_path(run, 2))
    before: list[list[str]] = []
    save = loop.save_checkpoint

    def failing(path: Path, state: Any) -> None:
        raise OSError(f"{path} cannot be written: No space left on device")

    def noted(path: Path, state: Any) -> None:
        before.append([path.name for path in list_checkpoints(run)])
        save(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", failing)
        with pytest.raises(OSError, match="No space"):
            train_noting(resume=resume, checkpoint_every=3)
    monkeypatch.setattr(loop, "save_checkpoint", noted)
    resumed = train_noting(resume=resume, checkpoint_every=3, keep_checkpoints=2)
    assert resumed.first_step == 2
    assert resumed.losses == straight.losses[2:]
    names = {step: checkpoint_path(run, step).name for step in (2, 3, 4, 6)}
    assert before == [[names[2], names[4], names[6]], [names[2], names[3]]]
    assert [path.name for path in list_checkpoints(run)] == [names[3], names[6]]
    losses = [[json.loads(row)[key] for key in ("step", "loss")] for row in rows.splitlines()]
    after = (run / "metrics.jsonl").read_text().splitlines()
    assert [[json.loads(row)[key] for key in ("step", "loss")] for row in after] == losses


def test_a_folder_is_not_continued_from_a_checkpoint_of_another(train_noting: Train, tmp_path: Path) -> None:
    train_noting(checkpoint_every=2)
    train_noting(output=tmp_path / "other", checkpoint_every=3)
    with pytest.raises(ValueError, match=r"output: .*other already holds a run"):
        train_noting(output=tmp_path / "other", resume=str(checkpoint_path(tmp_path / "run", 6)))


def test_what_cannot_be_resumed_from(train_noting: Train, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .* in .*run"):
        train_noting(resume="latest")
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*gone.safetensors"):
        train_noting(resume=str(tmp_path / "gone.safetensors"))
    with pytest.raises(ValueError, match="resume: latest is looked for in the output folder"):
        train_noting(resume="latest", output=None)
    checkpoint = train_noting().checkpoint
    os.truncate(checkpoint, checkpoint.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"step_00000006.safetensors: damaged"):
        train_noting(resume="latest")


# The small model of the fixtures, with steps slow enough to be stopped between two of them.
TRAIN = """
import sys, time, torch
from jepa_fast import models
from jepa_fast.commands.main import main
from jepa_fast.training import systems
create = models.create
small = {"depth": 1, "predictor_depth": 1, "predictor_dim": 96}
models.create = lambda name, **options: create(name, **small, **options)
torch.set_num_threads(1)
class Slow(systems.IJEPAStep):
    def update(self, **rates):
        time.sleep(0.15)
        super().update(**rates)
systems.IJEPAStep = Slow
main(sys.argv[1:])
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_writes_a_checkpoint_that_another_process_continues(
    train_small: Train, pictures: Path, tmp_path: Path, workers: int
) -> None:
    output = tmp_path / "stopped"
    options = {
        "--data": pictures, "--model": "ijepa_vitt8_128", "--image-size": 80, "--batch-size": 4,
        "--steps": 20, "--output": output, "--log-every": 1, "--workers": workers, "--device": "cpu",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, "train", *(str(part) for option in options.items() for part in option)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = output / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() or "\n" not in metrics.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    (checkpoint,) = list_checkpoints(output)
    assert f"checkpoint: {checkpoint}" in errors
    done = load_checkpoint(checkpoint)["step"]
    assert 0 < done < 20
    if workers == 0:
        straight = train_small(steps=20)
        resumed = train_small(steps=20, output=output, resume="latest")
        assert resumed.first_step == done
        assert resumed.losses == straight.losses[done:]
        assert_same(straight.checkpoint, resumed.checkpoint)
