"""Checkpoints come back bit for bit, and survive whatever happens while the next one is written."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jepa_fast.training import checkpoint as checkpoint_module
from jepa_fast.training.checkpoint import (
    STAGING_NAME,
    CheckpointError,
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)


def assert_same(a: Any, b: Any) -> None:
    """Equal in structure, types and bits."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    elif isinstance(a, float) and math.isnan(a):
        assert math.isnan(b)
    else:
        assert a == b


def round_trip(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    save_checkpoint(path, state)
    return load_checkpoint(path)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    ],
)
def test_tensors_keep_their_type_and_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (12, 8 * dtype.itemsize), dtype=torch.uint8)
    state = {"values": bits.view(dtype), "scalar": bits.view(dtype)[0, 0], "none": bits.view(dtype)[:0]}
    assert_same(round_trip(tmp_path / "a.safetensors", state), state)


def test_plain_values_and_nesting(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "numbers": [0, -1, 2**70, 0.1, -0.0, 1e-320, math.inf, math.nan, True, None],
        "tuple": (1, [2, (3,)], {}),
        "text": "ä\n",
        "int keys": {0: torch.ones(1), 1: {"a.b": torch.zeros(2), "a": {"b": torch.ones(3)}}},
        "a": {"x": torch.ones(1)},
        "a.x": torch.zeros(1),
    }
    assert_same(round_trip(tmp_path / "a.safetensors", state), state)


def test_views_and_shared_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    state = {"base": base, "same": base, "row": base[1], "column": base[:, 2], "turned": base.t()}
    assert_same(round_trip(tmp_path / "a.safetensors", state), state)


def test_an_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def new() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 1))
        groups: list[dict[str, Any]] = [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0, "fixed": True},
        ]
        return model, torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        for _ in range(number):
            optimizer.zero_grad()
            model(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()

    model, optimizer = new()
    steps(model, optimizer, 3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    saved = round_trip(tmp_path / "a.safetensors", state)
    assert_same(saved["optimizer"], optimizer.state_dict())
    steps(model, optimizer, 3)

    other, other_optimizer = new()
    other.load_state_dict(saved["model"])
    other_optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["rng"])
    steps(other, other_optimizer, 3)
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    assert_same(other_optimizer.state_dict(), optimizer.state_dict())


def test_loaded_tensors_do_not_live_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    values = round_trip(path, {"values": torch.ones(100_000)})["values"]
    path.write_bytes(bytes(path.stat().st_size))
    assert (values.add_(1) == 2).all()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": object()}}, "a.b: a checkpoint cannot hold a object"),
        ({"a": [1, {2, 3}]}, "a.1: a checkpoint cannot hold a set"),
        ({"a": {(1, 2): 3}}, r"a: expected keys of type str or int, got \(1, 2\)"),
        ({"a": {True: 3}}, "a: expected keys of type str or int, got True"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, state: dict[Any, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        save_checkpoint(tmp_path / "a.safetensors", state)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "step_00000001.safetensors"
    save_checkpoint(path, {"step": 1, "values": torch.rand(1000)})
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"step_00000001.safetensors: damaged, or not a jepa_fast"):
            load_checkpoint(path)
    path.write_bytes(os.urandom(len(whole)))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_other_safetensors_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"weights.safetensors: .* not a jepa_fast checkpoint"):
        load_checkpoint(path)
    save_file({}, path, metadata={"jepa_fast.checkpoint": "[1, 2"})
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
    lost = {"version": 1, "tree": {"values": {"tensor": "values"}}}
    save_file({}, path, metadata={"jepa_fast.checkpoint": json.dumps(lost)})
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_other_versions_and_missing_keys_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(CheckpointError, match=r"a.safetensors: lacks rng, training"):
        load_checkpoint(path, required=("training", "step", "rng"))
    monkeypatch.setattr(checkpoint_module, "FORMAT_VERSION", 2)
    with pytest.raises(CheckpointError, match=r"a.safetensors: expected checkpoint format 2, got 1"):
        load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*a.safetensors"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_the_latest_by_step_and_not_by_name_or_time(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        latest_checkpoint(tmp_path)
    for step in (100_000_000, 20, 3):
        save_checkpoint(checkpoint_path(tmp_path, step), {"step": step})
    (tmp_path / "step_9999999999.safetensors.part").touch()
    (tmp_path / "metrics.jsonl").touch()
    assert load_checkpoint(latest_checkpoint(tmp_path))["step"] == 100_000_000
    prune_checkpoints(tmp_path, 2)
    assert [load_checkpoint(path)["step"] for path in list_checkpoints(tmp_path)] == [20, 100_000_000]


def test_a_checkpoint_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_checkpoint(tmp_path / "a.safetensors", {"step": 1})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_failed_write_leaves_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"step": 1})

    def fail(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", fail)
    with pytest.raises(OSError, match=r"a.safetensors cannot be written: .*No space left on device"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from jepa_fast.training.checkpoint import load_checkpoint, save_checkpoint
path = Path(sys.argv[1])
save_checkpoint(path, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(path, {"values": torch.zeros(1_000_000)})
except OSError as error:
    print(error)
print(load_checkpoint(path), len(list(path.parent.iterdir())))
"""


def test_a_file_that_grows_too_large_for_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    error, state = done.stdout.splitlines()
    assert error.startswith(f"{path} cannot be written: ")
    assert state == "{'step': 1} 1"


# Saves one checkpoint after the other for ever; with "slow" every write takes about a fifth of a second.
WRITER = """
import itertools, sys, time, torch
from pathlib import Path
from jepa_fast.training import checkpoint
folder, slow = Path(sys.argv[1]), sys.argv[2] == "slow"
whole = checkpoint.save_file
def piecewise(tensors, path, metadata):
    whole(tensors, path, metadata)
    content = path.read_bytes()
    with open(path, "wb", buffering=0) as file:
        for start in range(0, len(content), len(content) // 50):
            file.write(content[start : start + len(content) // 50])
            time.sleep(0.004)
if slow:
    checkpoint.save_file = piecewise
for step in itertools.count(1):
    state = {"step": step, "values": torch.full((250_000,), float(step))}
    checkpoint.save_checkpoint(checkpoint.checkpoint_path(folder, step), state)
    checkpoint.prune_checkpoints(folder, 2)
"""


@pytest.mark.parametrize("speed", ["fast", "slow"])
def test_killed_while_writing(tmp_path: Path, speed: str) -> None:
    rng = random.Random(0)
    left_over = 0
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), speed])
        deadline = time.monotonic() + 60
        while not list_checkpoints(folder):
            assert writer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.5))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        for path in list_checkpoints(folder):
            state = load_checkpoint(path)
            assert path == checkpoint_path(folder, state["step"])
            assert (state["values"] == state["step"]).all()
            assert state["values"].shape == (250_000,)
        left_over += any((folder / STAGING_NAME).glob("*"))
        save_checkpoint(checkpoint_path(folder, 10**7), {"step": 10**7})
        assert not (folder / STAGING_NAME).exists()
    if speed == "slow":
        assert left_over > 0  # else no kill came in the middle of a write
