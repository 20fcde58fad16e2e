"""A run that starts from the weights of another one, as the published cool-downs do."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_fast import weights
from jepa_fast.bench.baselines.ijepa import EagerIJEPAStep
from jepa_fast.training import setup
from jepa_fast.training.checkpoint import checkpoint_path, latest_checkpoint, load_checkpoint, save_checkpoint
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.engine import Engine
from jepa_fast.training.loop import train
from jepa_fast.training.systems import make_system
from jepa_fast.training.world import World

from .test_resume import assert_same, leaves
from .test_systems import SYSTEMS

Train = Callable[..., Any]

COOLDOWN: dict[str, Any] = {
    "warmup_steps": 0, "decay": "linear", "lr": 5e-4, "final_lr": 1e-6, "momentum": 0.99, "final_momentum": 0.99,
}  # fmt: skip


def started(config: TrainConfig) -> Engine:
    """What `train` makes before the first step."""
    torch.manual_seed(config.seed)
    system = make_system(config)
    assert config.weights is not None
    begin = setup.read_weights(config.weights, system.model)
    engine = Engine(system.model, system.step, config, "float32", World(torch.device("cpu")), begin.teacher)
    if begin.optimizer is not None:
        engine.load_optimizer(begin.optimizer)
    return engine


@pytest.mark.parametrize("name", ["lejepa", "vjepa", "vjepa2", "vjepa21"])
def test_weights_and_optimizer_are_those_of_the_run(name: str, clips: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "data": str(clips), "device": "cpu", "batch_size": 4, "steps": 2, "lr": 1e-3, "momentum": 0.9,
        **SYSTEMS[name],
    }  # fmt: skip
    run = tmp_path / "run"
    saved = load_checkpoint(train(TrainConfig(output=run, **options)).checkpoint)["training"]
    state = started(TrainConfig(output=None, seed=1, weights=run, **options)).state_dict()
    saved.pop("counter", None)  # of the directions that SIGReg draws: a schedule, which begins anew
    for part, wanted in saved.items():
        found = leaves(state[part])
        for key, value in leaves(wanted).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(found[key], value), (part, key)
    if name != "lejepa":
        encoder, teacher = saved["encoder"], saved["teacher"]
        assert any(not torch.equal(teacher[key], value) for key, value in encoder.items())


def test_schedules_begin_anew_and_a_cooldown_is_resumed(
    train_small: Train, tmp_path: Path, log: io.StringIO
) -> None:
    pretrained = train_small(output=tmp_path / "pretrained")
    start: dict[str, Any] = {"weights": tmp_path / "pretrained", **COOLDOWN}
    straight = train_small(checkpoint_every=3, **start)
    assert straight.first_step == 0
    assert "pretrained, with the state of an optimizer" in log.getvalue()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    line = [5e-4 + step / 6 * (1e-6 - 5e-4) for step in range(1, 7)]
    assert [row["lr"] for row in rows] == pytest.approx(line)
    counts = [value["step"] for value in straight.step.optimizer.state.values()]
    assert {int(count) for count in counts} == {12}
    # What it started from is not needed any more.
    pretrained.checkpoint.unlink()
    checkpoint = checkpoint_path(tmp_path / "run", 6)
    last = checkpoint.rename(tmp_path / "last.safetensors")
    resumed = train_small(resume="latest", **start)
    assert resumed.first_step == 3
    assert resumed.losses == straight.losses[3:]
    assert_same(last, checkpoint)
    assert "step_00000003.safetensors; " in log.getvalue()
    assert "pretrained is not read again" in log.getvalue()
    with pytest.raises(ValueError, match=r"weights: .* was trained with '.*pretrained', got None"):
        train_small(resume="latest", **COOLDOWN)


def test_more_frames_and_larger_pictures(clips: Path, tmp_path: Path) -> None:
    """Rotary positions have no table: 16 frames of 256 pixels, then 64 of 384."""
    options: dict[str, Any] = {"data": str(clips), "device": "cpu", "batch_size": 2, "steps": 1}
    for name in ("vjepa2", "vjepa21"):
        short = options | SYSTEMS[name]
        train(TrainConfig(output=tmp_path / name, **short))
        long = short | {"frames": 8, "image_size": 96, "weights": tmp_path / name, "output": None}
        assert len(train(TrainConfig(**long)).losses) == 1
    # An image run of V-JEPA 2.1 goes on with clips, whose patches it has not moved.
    images = options | SYSTEMS["vjepa21_images"] | {"output": tmp_path / "images"}
    train(TrainConfig(**images))
    train(TrainConfig(**options, **SYSTEMS["vjepa21"], output=None, weights=tmp_path / "images"))


def test_a_table_of_positions_has_one_size(clips: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "data": str(clips), "device": "cpu", "batch_size": 2, "steps": 1, **SYSTEMS["vjepa"],
    }  # fmt: skip
    run = tmp_path / "run"
    train(TrainConfig(output=run, **options))
    with pytest.raises(
        ValueError,
        match=r"^weights: .*step_00000001.safetensors: encoder: 'pos_embed': expected \[1, 64, 48\], got \[1, 32, 48\]",
    ):
        train(TrainConfig(**options | {"frames": 8}, output=None, weights=run))


def test_what_does_not_fit_is_named_once(train_small: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_small(output=run)
    file = latest_checkpoint(run)
    state = load_checkpoint(file)
    other: dict[str, Any] = {"output": tmp_path / "other"}

    def refuse(message: str, path: Path, error: type[Exception] = ValueError, **changes: Any) -> None:
        with pytest.raises(error, match=f"^weights: {message}"):
            train_small(weights=path, **other, **changes)

    refuse(r".*6.safetensors: encoder: 'pos_embed': expected", run, model="ijepa_vits8_128")
    broken = tmp_path / "broken.safetensors"
    norm = state["training"]["predictor"].pop("predictor_norm.bias")
    save_checkpoint(broken, state)
    refuse(r".*broken.safetensors: predictor: missing key 'predictor_norm.bias', expected \[96\]", broken)
    state["training"]["predictor"] |= {"predictor_norm.bias": norm, "predictor_norm.scale": norm}
    save_checkpoint(broken, state)
    refuse(r".*broken.safetensors: predictor: unexpected key 'predictor_norm.scale'", broken)
    broken.write_bytes(b"nothing")
    refuse(r".*broken.safetensors: expected a file of tensors, got one that cannot be read", broken)
    refuse(r".*gone.safetensors: no such file", tmp_path / "gone.safetensors", FileNotFoundError)
    refuse(r"no checkpoint \(step_\*.safetensors\) in .*other", tmp_path / "other", FileNotFoundError)
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("layout", weights.LAYOUTS)
def test_files_of_weights(config: Any, layout: str, small_model: None, tmp_path: Path) -> None:
    """Without an optimizer; a file of transformers has the encoder alone, which both encoders start as."""
    torch.manual_seed(7)
    model, other = (make_system(config()).model for _ in range(2))
    file = tmp_path / ("model.pt" if layout == "published" else "model.safetensors")
    weights.save(model, file, layout=layout, teacher=None if layout == "transformers" else other.encoder)
    engine = started(config(weights=file))
    state = engine.state_dict()
    teacher = model.encoder if layout == "transformers" else other.encoder
    for part, wanted in {"encoder": model.encoder, "teacher": teacher}.items():
        assert all(torch.equal(state[part][key], value) for key, value in wanted.state_dict().items()), part
    same = [
        torch.equal(state["predictor"][key], value) for key, value in model.predictor.state_dict().items()
    ]
    assert all(same) == (layout != "transformers")
    assert state["optimizer"]["state"] == {}


def test_the_eager_engine_starts_from_it_too(train_noting: Train, train_small: Train, tmp_path: Path) -> None:
    saved = load_checkpoint(train_small(output=tmp_path / "pretrained").checkpoint)["training"]
    still: dict[str, Any] = {
        "lr": 0.0, "start_lr": 0.0, "final_lr": 0.0, "momentum": 1.0, "steps": 1, "output": None,
    }  # fmt: skip
    step = train_noting(EagerIJEPAStep, weights=tmp_path / "pretrained", **still).step
    for part in ("encoder", "predictor", "teacher"):
        state = step.state_dict()[part]
        assert all(torch.equal(state[key], value) for key, value in saved[part].items()), part


def test_a_checkpoint_from_before_these_fields_did_as_their_defaults(
    train_noting: Train, tmp_path: Path
) -> None:
    straight = train_noting(checkpoint_every=3)
    old = checkpoint_path(tmp_path / "run", 3)
    state = load_checkpoint(old)
    for name in setup.SINCE:
        del state["plan"][name]
    save_checkpoint(old, state)
    resume = str(old)
    assert train_noting(output=None, resume=resume).losses == straight.losses[3:]
    for changes, message in (
        ({"decay": "linear"}, "decay: .* was trained with 'cosine', got 'linear'"),
        ({"decay_steps": 0}, "decay_steps: .* was trained with None, got 0"),
        ({"schedule_scale": 1.25}, "schedule_scale: .* was trained with 1.0, got 1.25"),
        ({"weights": tmp_path / "a"}, "weights: .* was trained with None, got '.*a'"),
    ):
        with pytest.raises(ValueError, match=message):
            train_noting(output=None, resume=resume, **changes)
