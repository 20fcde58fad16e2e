"""Every system trains from the same loop: its views, masks and batches, resumed bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo import lookup_backend

from jepa_fast.masks import MaskSets, RaggedMasks
from jepa_fast.training import engine
from jepa_fast.training.checkpoint import checkpoint_path
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.loop import train
from jepa_fast.training.systems import make_system

VJEPA = {
    "dim": 48, "depth": 4, "num_heads": 2, "mlp_dim": 96, "predictor_depth": 1, "predictor_dim": 48,
    "predictor_heads": 2,
}  # fmt: skip
LEJEPA = {
    "dim": 48,
    "depth": 1,
    "num_heads": 2,
    "mlp_dim": 96,
    "embed_dim": 24,
    "hidden_dim": 32,
    "proj_dim": 8,
}
PUBLISHED_RAMP = {"context_loss_start": 15_000, "context_loss_end": 30_000}
SYSTEMS: dict[str, dict[str, Any]] = {
    "lejepa": {
        "model": "lejepa_vits8_128", "model_options": LEJEPA, "image_size": 32, "local_size": 16, "local_views": 3,
        "sigreg_slices": 16, "flip": 0.5, "colour": 0.8, "gray": 0.2,
    },
    "vjepa": {"model": "vjepa_vitl_224", "model_options": VJEPA, "image_size": 64, "frames": 4},
    "vjepa2": {"model": "vjepa2_vitl_256", "model_options": VJEPA, "image_size": 64, "frames": 4},
    "vjepa2_ragged": {
        "model": "vjepa2_vitl_256", "model_options": VJEPA, "image_size": 64, "frames": 4, "ragged": True,
    },
    "vjepa21": {
        "model": "vjepa21_vitg_256", "model_options": VJEPA, "image_size": 64, "frames": 4,
        "context_loss_start": 1, "context_loss_end": 3,
    },
    "vjepa21_ragged": {
        "model": "vjepa21_vitg_256", "model_options": VJEPA, "image_size": 64, "frames": 4, "ragged": True,
        "context_loss_start": 1, "context_loss_end": 3,
    },
    "vjepa21_images": {
        "model": "vjepa21_vitg_256", "model_options": VJEPA, "image_size": 64, "frames": 1,
        "context_loss_start": 1, "context_loss_end": 3,
    },
    "ijepa_ragged": {
        "model": "ijepa_vitt8_128", "model_options": {"depth": 1, "predictor_depth": 1, "predictor_dim": 48},
        "image_size": 80, "ragged": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_trains_and_goes_on_bit_for_bit(name: str, clips: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "data": str(clips), "device": "cpu", "batch_size": 4, "steps": 4, "checkpoint_every": 2,
        "lr": 1e-3, "log_every": 4, **SYSTEMS[name],
    }  # fmt: skip
    straight = train(TrainConfig(output=tmp_path / "run", **options))
    assert len(straight.losses) == 4
    assert all(np.isfinite(straight.losses))
    resume = str(checkpoint_path(tmp_path / "run", 2))
    rest = train(TrainConfig(output=tmp_path / "rest", resume=resume, **options))
    assert rest.losses == straight.losses[2:]
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["tokens_per_s"] > 0
    assert row["flop_per_s"] > 0


@pytest.mark.parametrize("name", ["lejepa", "vjepa", "vjepa2", "vjepa21"])
def test_compiled_networks_give_the_same_losses(
    name: str, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        """Traces forward and backward, which our ops take part in; what a compiler makes of them is its own."""
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(engine, "COMPILER", backend)
    options: dict[str, Any] = {
        "data": str(clips), "device": "cpu", "batch_size": 4, "steps": 3, "output": None, "lr": 3e-3,
        "start_lr": 1e-3, "momentum": 0.9, **SYSTEMS[name],
    }  # fmt: skip
    if name != "vjepa21":  # which takes levels out of four blocks
        options["model_options"] = options["model_options"] | {"depth": 1}
    plain = train(TrainConfig(**options)).losses
    torch.compiler.reset()  # or the graphs of other tests count against the limit, past which nothing is compiled
    compiled = train(TrainConfig(**options, compile=True)).losses
    assert compiled == pytest.approx(plain, rel=2e-4)
    assert plain[0] != pytest.approx(plain[2], rel=2e-3)
    assert len(graphs) >= (2 if name == "lejepa" else 3)  # each crop size, or teacher, encoder and predictor


@pytest.mark.parametrize("name", ["vjepa2", "vjepa2_ragged", "vjepa21_ragged", "ijepa_ragged"])
def test_parts_of_a_batch_are_the_batch(name: str, clips: Path) -> None:
    options: dict[str, Any] = {
        "data": str(clips), "device": "cpu", "batch_size": 4, "steps": 4, "output": None, "lr": 1e-3,
    }  # fmt: skip
    whole = train(TrainConfig(**options, **SYSTEMS[name]))
    for parts in (2, 4):
        losses = train(TrainConfig(**options, **SYSTEMS[name], accumulate=parts)).losses
        assert losses == pytest.approx(whole.losses, rel=2e-4)


def test_the_context_loss_of_vjepa21_rises_over_its_ramp(clips: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "data": str(clips), "device": "cpu", "batch_size": 2, "steps": 5, "output": tmp_path / "run",
    }  # fmt: skip
    result = train(TrainConfig(**options, **SYSTEMS["vjepa21"]))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["context_weight"] for row in rows] == [0.0, 0.0, 0.25, 0.5, 0.5]
    published = train(TrainConfig(**options | {"output": None}, **{**SYSTEMS["vjepa21"], **PUBLISHED_RAMP}))
    assert published.losses[:2] == result.losses[:2]
    assert published.losses[2] != result.losses[2]
    assert published.step.context_weight == 0.0


def test_the_context_loss_of_vjepa21_without_distances(clips: Path) -> None:
    """As in the published cool-down: neither distances nor a ramp."""
    options = {
        "data": str(clips), "device": "cpu", "batch_size": 2, "steps": 2, "output": None,
        **SYSTEMS["vjepa21"], "context_loss_start": 0, "context_loss_end": 0,
    }  # fmt: skip
    by_distance = train(TrainConfig(**options))
    uniform = train(TrainConfig(**options, context_loss_weighting="uniform"))
    assert by_distance.step.by_distance
    assert not uniform.step.by_distance
    assert uniform.step.context_weight == 0.5
    assert uniform.losses[0] > by_distance.losses[0]  # most context tokens are farther from a target than 1


def test_parts_of_one_image_are_refused_before_the_first_step(clips: Path) -> None:
    config = TrainConfig(
        data=str(clips), device="cpu", batch_size=4, accumulate=4, output=None, **SYSTEMS["lejepa"]
    )
    with pytest.raises(
        ValueError,
        match="batch_size: expected at least 8, 2 images for each of 1 processes times accumulate = 4 parts",
    ):
        train(config)


def test_views_and_masks_of_the_systems() -> None:
    lejepa = make_system(TrainConfig(**SYSTEMS["lejepa"]))
    kinds = [(kind.size, kind.number, kind.scale) for kind in lejepa.kinds]
    assert kinds == [(32, 2, (0.3, 1.0)), (16, 3, (0.05, 0.3))]
    assert lejepa.sampler is None
    views = [torch.zeros(4, kind.number, 1, 3, kind.size, kind.size) for kind in lejepa.kinds]
    assert [tuple(crops.shape) for crops in lejepa.arrange(views)] == [(2, 4, 3, 32, 32), (3, 4, 3, 16, 16)]
    vjepa = make_system(TrainConfig(**SYSTEMS["vjepa2_ragged"]))
    assert vjepa.frames == 4
    assert vjepa.sampler is not None
    masks = vjepa.sampler(2, 0, torch.Generator().manual_seed(0))
    assert isinstance(masks, MaskSets)
    assert all(isinstance(part, RaggedMasks) for part in masks)
    assert vjepa.arrange([torch.zeros(2, 1, 4, 3, 64, 64)]).shape == (2, 3, 4, 64, 64)


def test_images_of_vjepa21_have_their_own_patches_and_masks(pictures: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        system = make_system(TrainConfig(model="vjepa21_vitG_256", frames=1))
    assert system.frames == 1
    assert system.model.config.frames == 16
    assert system.sampler is not None
    (masks,) = system.sampler(
        2, 0, torch.Generator().manual_seed(0)
    )  # one set, published as 10 blocks of 0.15
    patches = 16 * 16
    assert int(masks.target.max()) < patches
    assert masks.context.shape[1] + masks.target.shape[1] <= patches
    alone = system.sampler(1, 0, torch.Generator().manual_seed(0))[0]
    assert alone.context.shape[1] + alone.target.shape[1] == patches
    options: dict[str, Any] = {"data": str(pictures), "device": "cpu", "batch_size": 4, "steps": 2}
    result = train(TrainConfig(**options, output=tmp_path / "run", **SYSTEMS["vjepa21_images"]))
    encoder = result.step.encoder
    torch.manual_seed(0)  # as the run did before it drew the weights
    before = make_system(TrainConfig(**SYSTEMS["vjepa21_images"])).model.encoder
    moved = {
        name
        for name, parameter in encoder.named_parameters()
        if not torch.equal(parameter, before.get_parameter(name))
    }
    assert {"patch_embed_img.proj.weight", "img_mod_embed"} <= moved
    assert not {"patch_embed.proj.weight", "video_mod_embed"} & moved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "vjepa2_vitl_256", "frames": 1},
            "frames: expected a multiple of tubelet = 2, got 1",
        ),
        (
            {"model": "ijepa_vitt8_128", "frames": 8},
            "frames: expected none, as ijepa_vitt8_128 has no such size, got 8",
        ),
        (
            {"model": "ijepa_vitt8_128", "local_size": 8},
            "local_size: expected none, as ijepa_vitt8_128 has no such",
        ),
        (
            {"model": "ijepa_vitt8_128", "model_options": {"dept": 3}},
            "dept: not a field of the configuration; accepted: .*; did you mean 'depth'",
        ),
        (
            {"model": "ijepa_vitt8_128", "image_size": 48, "model_options": {"image_size": 64}},
            "image_size: expected one value, got 48 and, in model_options, 64",
        ),
        ({"model": "vjepa2_ac_vitg"}, "model: expected one that is trained from scratch, got vjepa2_ac_vitg"),
    ],
)
def test_what_a_system_does_not_have_is_refused(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        make_system(TrainConfig(**options))
