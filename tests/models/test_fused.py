"""The step on its fused ops against the same step on plain PyTorch operators."""

import copy
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast.kernels.adamw_ema.api import AdamWEMA
from jepa_fast.masks import Masks
from jepa_fast.models import IJEPA
from jepa_fast.nn.fused import Fused
from jepa_fast.training.step import IJEPAStep

RATES = {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.9}
STEPS = 4
PIECES = [field.name for field in fields(Fused)]
OTHERS = {"attention", "sigreg"}  # I-JEPA has no use for them


def losses(step: IJEPAStep, pixels: Tensor, masks: Masks) -> list[float]:
    return [step.step(pixels, masks, **RATES).item() for _ in range(STEPS)]


@pytest.mark.parametrize("piece", [*(piece for piece in PIECES if piece not in OTHERS), "all"])
@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [
        (torch.float64, "float32", 1e-11),
        (torch.float32, "float32", 1e-5),
        (torch.float32, "bfloat16", 5e-3),
    ],
)
def test_a_piece_changes_no_loss(
    model: IJEPA,
    pixels: Tensor,
    masks: Masks,
    piece: str,
    dtype: torch.dtype,
    precision: Any,
    tolerance: float,
) -> None:
    model, pixels = model.to(dtype), pixels.to(dtype)
    fused = Fused() if piece == "all" else replace(Fused.none(), **{piece: True})
    plain = IJEPAStep(copy.deepcopy(model), precision=precision, fused=False)
    ours = IJEPAStep(model, precision=precision, fused=fused)
    expected = losses(plain, pixels, masks)
    assert losses(ours, pixels, masks) == pytest.approx(expected, rel=tolerance)
    assert expected[-1] < expected[0]


def test_one_switch(model: IJEPA) -> None:
    assert IJEPAStep(model).fused == IJEPAStep(model, fused=True).fused == Fused()
    assert all(getattr(Fused(), piece) and not getattr(Fused.none(), piece) for piece in PIECES)
    assert not isinstance(IJEPAStep(model, fused=False).optimizer, AdamWEMA)


def test_copies_follow_weights_that_were_changed_otherwise(
    model: IJEPA, pixels: Tensor, masks: Masks
) -> None:
    """The products read the optimizer's bfloat16 copies; loaded or edited weights must reach them."""
    only_optimizer = replace(Fused.none(), adamw_ema=True)
    with_copies = IJEPAStep(copy.deepcopy(model), precision="bfloat16", fused=only_optimizer)
    without = IJEPAStep(model, precision="bfloat16", fused=False)
    losses(with_copies, pixels, masks)
    state = copy.deepcopy(with_copies.state_dict())
    for step in (with_copies, without):
        step.load_state_dict(copy.deepcopy(state))
    assert with_copies.step(pixels, masks, **RATES) == without.step(pixels, masks, **RATES)
    with torch.no_grad():
        for step in (with_copies, without):
            step.load_state_dict(copy.deepcopy(state))
            step.teacher.blocks[0].attn.proj.weight.mul_(1.5)
            step.encoder.blocks[0].mlp.fc1.weight.mul_(0.5)
    assert with_copies.step(pixels, masks, **RATES) == without.step(pixels, masks, **RATES)


def test_a_copied_network_reads_its_own_weights(model: IJEPA, pixels: Tensor, masks: Masks) -> None:
    """The copies belong to the step, not to the modules."""
    step = IJEPAStep(model, precision="bfloat16")
    step.step(pixels, masks, **RATES)
    twin = copy.deepcopy(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = twin(pixels, masks)
        assert torch.equal(before, model(pixels, masks))
        twin.predictor.predictor_proj.weight.zero_()
        assert not torch.equal(before, twin(pixels, masks))
