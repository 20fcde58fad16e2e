"""Outputs and gradients against transformers' IJepaModel and VJEPA2Model, from the same random weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jepa_fast import models
from jepa_fast.masks import TubeMasks, TubeSet
from jepa_fast.nn.packing import pack
from jepa_fast.weights.transformers import (
    IJEPA_5,
    VJEPA2_ENCODER,
    VJEPA2_PREDICTOR,
    stack_mask_tokens,
    unstack_mask_tokens,
)

transformers = pytest.importorskip("transformers")

IMAGES = [
    {"image_size": 32, "patch_size": 8, "dim": 48, "depth": 2, "num_heads": 2, "mlp_dim": 96},
    {"image_size": 48, "patch_size": 16, "dim": 80, "depth": 3, "num_heads": 5, "mlp_dim": 100},
]
VIDEOS = [
    {"image_size": 48, "frames": 4, "dim": 48, "depth": 2, "num_heads": 2, "predictor_dim": 64,
     "predictor_heads": 2, "predictor_depth": 2},
    {"image_size": 64, "frames": 2, "dim": 160, "depth": 3, "num_heads": 2, "predictor_dim": 30,
     "predictor_heads": 3, "predictor_depth": 1},
    {"image_size": 32, "frames": 8, "dim": 64, "depth": 1, "num_heads": 1, "predictor_dim": 48,
     "predictor_heads": 2, "predictor_depth": 3},
]  # fmt: skip


def randomized(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                scale = 0.1 if "norm" in name or parameter.ndim == 1 else parameter[0].numel() ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1.0)


def image_pair(sizes: dict[str, int], attention: str) -> tuple[Any, Any]:
    ours = models.create("ijepa_vitb16", **sizes, predictor_depth=1, predictor_dim=20 * sizes["num_heads"])
    randomized(ours)
    config = transformers.IJepaConfig(
        hidden_size=sizes["dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["mlp_dim"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        layer_norm_eps=1e-6,
        attn_implementation=attention,
    )
    theirs = transformers.IJepaModel(config, add_pooling_layer=False)
    theirs.load_state_dict(IJEPA_5.to_theirs(ours.encoder.state_dict()))
    return ours, theirs


def video_pair(sizes: dict[str, int], attention: str) -> tuple[Any, Any]:
    ours = models.create("vjepa2_vitl_256", **sizes, mlp_dim=2 * sizes["dim"])
    randomized(ours)
    config = transformers.VJEPA2Config(
        hidden_size=sizes["dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        mlp_ratio=2,
        crop_size=sizes["image_size"],
        frames_per_clip=sizes["frames"],
        pred_hidden_size=sizes["predictor_dim"],
        pred_num_attention_heads=sizes["predictor_heads"],
        pred_num_hidden_layers=sizes["predictor_depth"],
        attn_implementation=attention,
    )
    theirs = transformers.VJEPA2Model(config)
    theirs.encoder.load_state_dict(VJEPA2_ENCODER.to_theirs(ours.encoder.state_dict()))
    theirs.predictor.load_state_dict(
        VJEPA2_PREDICTOR.to_theirs(stack_mask_tokens(ours.predictor.state_dict()))
    )
    return ours, theirs


def video_masks(sizes: dict[str, int], batch: int) -> Any:
    side = sizes["image_size"] // 16
    sampler = TubeMasks((sizes["frames"] // 2, side, side), sets=(TubeSet(2, (0.25, 0.3)),))
    return sampler.sample(batch, 1, torch.Generator().manual_seed(1))[0]


def ours_video(model: Any, clips: Tensor, masks: Any) -> tuple[Tensor, Tensor]:
    """As VJEPA2Model computes it: every token is encoded, context tokens are chosen for the predictor, token 1."""
    encoded = model.encoder(clips)
    contexts, targets = (pack([part], *encoded.shape[:2]) for part in masks)
    predicted, _ = model.predictor.predict(
        encoded.flatten(0, 1)[contexts.place], contexts, targets, tokens=(1,)
    )
    return encoded, predicted.unflatten(0, (len(clips), -1))


def theirs_video(model: Any, clips: Tensor, masks: Any) -> tuple[Tensor, Tensor]:
    found = model(clips.transpose(1, 2), context_mask=[masks.context], target_mask=[masks.target])
    return found.last_hidden_state, found.predictor_output.last_hidden_state


def gradients(module: nn.Module, outputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Of a random sum of the outputs, by name."""
    generator = torch.Generator().manual_seed(3)
    total: Any = 0
    for output in outputs:
        total = total + (output.double() * torch.randn(output.shape, generator=generator)).sum()
    module.zero_grad()
    total.backward()
    return {
        name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None
    }


def flat(parts: dict[str, Tensor], keys: list[str]) -> Tensor:
    return torch.cat([parts[key].double().flatten() for key in keys])


def compare(sizes: dict[str, int], dtype: torch.dtype, autocast: bool) -> tuple[list[Tensor], list[Tensor]]:
    """[encoder output, predictor output, gradients] of ours and theirs."""
    video = "frames" in sizes
    # Their eager attention takes the softmax in float32, whatever the dtype.
    attention = "sdpa" if dtype == torch.float64 else "eager"
    ours, theirs = (video_pair if video else image_pair)(sizes, attention)
    ours, theirs = ours.to(dtype), theirs.to(dtype).train()
    side = sizes["image_size"]
    generator = torch.Generator().manual_seed(2)
    shape = (2, 3, sizes["frames"], side, side) if video else (2, 3, side, side)
    pixels = torch.randn(shape, generator=generator).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if video:
            masks = video_masks(sizes, 2)
            found, expected = ours_video(ours, pixels, masks), theirs_video(theirs, pixels, masks)
        else:
            found = (ours.encoder(pixels),)
            expected = (theirs(pixels, interpolate_pos_encoding=False).last_hidden_state,)
    mine, given = gradients(ours, found), gradients(theirs, expected)
    if video:
        encoder, predictor = (
            {key.removeprefix(part): value for key, value in given.items() if key.startswith(part)}
            for part in ("encoder.", "predictor.")
        )
        given = {f"encoder.{k}": v for k, v in VJEPA2_ENCODER.to_ours(encoder).items()}
        tokens = unstack_mask_tokens(VJEPA2_PREDICTOR.to_ours(predictor))
        given |= {f"predictor.{k}": v for k, v in tokens.items()}
    else:
        given = {f"encoder.{k}": v for k, v in IJEPA_5.to_ours(given).items()}
    keys = sorted(mine)
    assert set(mine) <= set(given)
    # All that theirs has more of is the tokens and tables without a gradient in ours.
    assert all("mask_tokens" in key or key.endswith("pos_embed") for key in set(given) - set(mine))
    return [*found, flat(mine, keys)], [*expected, flat(given, keys)]


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("sizes", [*IMAGES, *VIDEOS], ids=lambda sizes: f"{sizes['dim']}x{sizes['depth']}")
def test_outputs_and_gradients(sizes: dict[str, int], dtype: torch.dtype, tolerance: float) -> None:
    for found, expected in zip(*compare(sizes, dtype, False), strict=True):
        assert found.shape == expected.shape
        assert distance(found, expected) < tolerance


@pytest.mark.parametrize("sizes", [IMAGES[0], *VIDEOS[:2]], ids=lambda sizes: f"{sizes['dim']}")
def test_bfloat16_error_is_at_most_twice_theirs(sizes: dict[str, int]) -> None:
    exact, _ = compare(sizes, torch.float64, False)
    found, expected = compare(sizes, torch.float32, True)
    for ours, theirs, reference in zip(found, expected, exact, strict=True):
        assert 0 < distance(ours, reference) < 2 * distance(theirs, reference)
