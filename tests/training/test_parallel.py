"""Two processes over gloo train as one does: same losses, and checkpoints that either continues."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from jepa_fast.training.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.loop import train
from jepa_fast.training.world import Meetings, World

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")

SMALL = {"depth": 2, "predictor_depth": 1, "predictor_dim": 96}
VIDEO: dict[str, Any] = {
    "data": "clips", "image_size": 64, "frames": 4,
    "model_options": {
        "dim": 48, "depth": 4, "num_heads": 2, "mlp_dim": 96, "predictor_depth": 1, "predictor_dim": 48,
        "predictor_heads": 2,
    },
}  # fmt: skip
SECONDS = 120
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp_parts": {"accumulate": 2},
    "fsdp": {"parallel": "fsdp", "checkpoint_every": 2},
    "fsdp_parts": {"parallel": "fsdp", "accumulate": 2},
    "fsdp_bfloat16": {"parallel": "fsdp", "precision": "bfloat16"},
    "vjepa": {**VIDEO, "model": "vjepa_vitl_224"},
    "vjepa2": {**VIDEO, "model": "vjepa2_vitl_256"},
    "vjepa2_parts": {**VIDEO, "model": "vjepa2_vitl_256", "accumulate": 2},
    "ijepa_ragged": {"ragged": True},
    "vjepa2_ragged": {**VIDEO, "model": "vjepa2_vitl_256", "ragged": True},
    "vjepa2_ragged_parts": {**VIDEO, "model": "vjepa2_vitl_256", "ragged": True, "accumulate": 2},
    "vjepa2_ragged_fsdp_parts": {
        **VIDEO,
        "model": "vjepa2_vitl_256",
        "ragged": True,
        "parallel": "fsdp",
        "accumulate": 2,
    },
    "vjepa21": {**VIDEO, "model": "vjepa21_vitg_256", "context_loss_start": 1, "context_loss_end": 3},
    "vjepa21_images": {
        **VIDEO,
        "data": "pictures",
        "frames": 1,
        "context_loss_end": 0,
        "context_loss_start": 0,
        "model": "vjepa21_vitg_256",
    },
    "vjepa21_fsdp": {
        **VIDEO,
        "context_loss_start": 1,
        "context_loss_end": 3,
        "model": "vjepa21_vitg_256",
        "parallel": "fsdp",
    },
}


def config(folders: dict[str, str], **changes: Any) -> TrainConfig:
    """folders: of pictures and of clips."""
    options: dict[str, Any] = {
        "data": "pictures", "model": "ijepa_vitt8_128", "model_options": SMALL, "image_size": 80, "batch_size": 4,
        "steps": 4, "device": "cpu", "output": None, "lr": 3e-3, "start_lr": 1e-3, "momentum": 0.9,
    }  # fmt: skip
    options |= changes
    return TrainConfig(**(options | {"data": folders[options["data"]]}))


def work(rank: int, data: dict[str, str], folder: str, port: str) -> None:
    os.environ |= {  # as torchrun does
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    losses = {}
    for name, changes in RUNS.items():
        output = Path(folder, name)
        losses[name] = train(config(data, **changes, output=output)).losses
    resume = str(Path(folder, "fsdp", "step_00000002.safetensors"))
    losses["fsdp_resumed"] = train(
        config(data, parallel="fsdp", resume=resume, output=Path(folder, "resumed"))
    ).losses
    start = Path(folder, "ddp")
    losses["fsdp_started"] = train(config(data, parallel="fsdp", weights=start)).losses
    if rank == 0:
        Path(folder, "losses.json").write_text(json.dumps(losses))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> tuple[dict[str, str], Path]:
    """The data, and what two processes made of it."""
    import numpy as np
    from PIL import Image

    pictures, folder = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for number in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((96, 72), Image.Resampling.BICUBIC).save(pictures / f"{number}.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    data = {"pictures": str(pictures), "clips": str(clips)}
    arguments = (data, str(folder), port)
    processes = mp.start_processes(work, arguments, 2, join=False, start_method="spawn")
    deadline = time.monotonic() + SECONDS
    try:
        while not processes.join(timeout=1.0):
            assert time.monotonic() < deadline, f"not done in {SECONDS} s"
    finally:
        for process in processes.processes:
            process.kill()
    return data, folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(together: tuple[dict[str, str], Path], name: str) -> None:
    data, folder = together
    losses = json.loads((folder / "losses.json").read_text())[name]
    alone = train(config(data, **RUNS[name] | {"parallel": "ddp", "accumulate": 1}))
    # The sums over a batch are taken in another order, and AdamW's first steps turn roundings of small gradients into
    # steps of their own size; in bfloat16 a rounding is 2**-9.
    tolerance = 2e-2 if RUNS[name].get("precision") == "bfloat16" else 2e-4
    assert losses == pytest.approx(alone.losses, rel=tolerance)
    assert alone.losses[0] != pytest.approx(alone.losses[3], rel=10 * tolerance)


def test_shards_make_a_checkpoint_of_whole_tensors(together: tuple[dict[str, str], Path]) -> None:
    data, folder = together
    alone = train(config(data)).step.state_dict()
    saved = load_checkpoint(latest_checkpoint(folder / "fsdp"))["training"]
    for part in ("encoder", "predictor", "teacher"):
        assert list(saved[part]) == list(alone[part])
        for name, tensor in alone[part].items():
            torch.testing.assert_close(saved[part][name], tensor, rtol=1e-3, atol=1e-3, msg=name)
    for number, state in alone["optimizer"]["state"].items():
        moment = saved["optimizer"]["state"][number]["exp_avg"]
        torch.testing.assert_close(moment, state["exp_avg"], rtol=1e-2, atol=1e-6)


def test_a_sharded_run_goes_on_from_its_checkpoint(together: tuple[dict[str, str], Path]) -> None:
    data, folder = together
    losses = json.loads((folder / "losses.json").read_text())
    assert losses["fsdp_resumed"] == losses["fsdp"][2:]
    # One process continues what two began.
    resume = str(folder / "fsdp" / "step_00000002.safetensors")
    alone = train(config(data, resume=resume))
    assert alone.losses == pytest.approx(losses["fsdp"][2:], rel=2e-4)


def test_a_sharded_run_starts_from_weights(together: tuple[dict[str, str], Path]) -> None:
    data, folder = together
    losses = json.loads((folder / "losses.json").read_text())
    alone = train(config(data, weights=folder / "ddp")).losses
    assert losses["fsdp_started"] == pytest.approx(alone, rel=2e-4)
    assert alone[0] != pytest.approx(losses["ddp"][0], rel=1e-2)


def test_one_process_writes(together: tuple[dict[str, str], Path]) -> None:
    _, folder = together
    rows = (folder / "ddp" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]


def test_meetings_are_at_the_same_steps_and_some_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 0.1 s here and a quarter more elsewhere: both wait for the smaller number of steps."""
    seconds = 0.0
    monkeypatch.setattr("jepa_fast.training.world.time.monotonic", lambda: seconds)
    asked: dict[int, tuple[int, ...]] = {}

    class Pair(World):
        def largest(self, *numbers: int) -> list[int]:
            asked[step] = numbers
            other = (15 if step == 35 else 0, -1 if step < 3 else -16)
            return [max(pair) for pair in zip(numbers, other, strict=True)]

    meetings = Meetings(Pair(torch.device("cpu"), 0, 2))
    heard = {}
    for step in range(1, 40):
        seconds += 0.1
        heard[step] = meetings.heard(step, 0)
    assert list(asked) == [1, 2, 3, 19, 35]
    assert asked[19] in ((0, -20), (0, -19))  # 2 s in steps of 0.1, which is no binary number
    assert [step for step, signal in heard.items() if signal] == [35]


def test_sigterm_is_met_between_two_reports(together: tuple[dict[str, str], Path], tmp_path: Path) -> None:
    data, _ = together
    options = {
        "--data": data["pictures"], "--model": "ijepa_vitt8_128", "--image-size": 80, "--batch-size": 4,
        "--steps": 100000, "--log-every": 100000, "--checkpoint-every": 30, "--device": "cpu", "--output": tmp_path,
    }  # fmt: skip
    small = [str(part) for pair in SMALL.items() for part in pair]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [
            *launcher, "-m", "jepa_fast.commands.main", "train",
            *(str(part) for option in options.items() for part in option), "--model-options", *small,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not list_checkpoints(tmp_path):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=25)  # torchrun kills after 30
    finally:
        process.kill()
    latest = latest_checkpoint(tmp_path)
    done = load_checkpoint(latest)["step"]
    assert f"SIGTERM: stopped after step {done}; checkpoint: {latest}" in errors
