"""The accelerated I-JEPA against the published eager formulation, from the same weights, data and masks."""

import copy
from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from jepa_fast.bench.baselines.ijepa import EagerIJEPAStep
from jepa_fast.masks import Masks, MultiBlockMasks
from jepa_fast.models import IJEPA
from jepa_fast.training.step import IJEPAStep

RATES = {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.99}

Step: TypeAlias = IJEPAStep | EagerIJEPAStep


def parameters(step: Step) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": parameter
        for part in ("encoder", "predictor", "teacher")
        for name, parameter in getattr(step, part).named_parameters()
    }


def gradients(step: Step, pixels: Tensor, masks: Masks) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one step and its gradients, which the optimizer would see."""
    seen: dict[str, Tensor] = {}

    def note(*_: object) -> None:
        seen.update(
            {name: value.grad.clone() for name, value in parameters(step).items() if value.grad is not None}
        )

    handle = step.optimizer.register_step_pre_hook(note)
    loss = step.step(pixels, masks, lr=0.0, weight_decay=0.0, momentum=1.0)
    handle.remove()
    return loss, seen


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_loss_and_gradients(
    model: IJEPA, pixels: Tensor, masks: Masks, dtype: torch.dtype, tolerance: float
) -> None:
    model, pixels = model.to(dtype), pixels.to(dtype)
    eager_loss, eager = gradients(EagerIJEPAStep(model), pixels, masks)
    loss, ours = gradients(IJEPAStep(model), pixels, masks)
    torch.testing.assert_close(loss, eager_loss, rtol=tolerance, atol=0.0)
    assert ours.keys() == eager.keys()
    for name, expected in eager.items():
        difference = (ours[name] - expected).norm() / expected.norm().clamp_min(1e-6)
        assert difference < tolerance, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
def test_twenty_steps(model: IJEPA, pixels: Tensor, dtype: torch.dtype, tolerance: float) -> None:
    model = model.to(dtype)
    steps = EagerIJEPAStep(model), IJEPAStep(model)
    sampler, generator = MultiBlockMasks(12), torch.Generator().manual_seed(0)
    losses: list[list[float]] = [[], []]
    for number in range(20):
        batch = pixels.roll(5 * number, dims=3).to(dtype)
        masks = sampler.sample(len(batch), number, generator)
        for step, curve in zip(steps, losses, strict=True):
            curve.append(step.step(batch, masks, **RATES).item())
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert losses[0][-1] < 0.7 * losses[0][0]


def test_bfloat16_error_is_that_of_eager(model: IJEPA, pixels: Tensor, masks: Masks) -> None:
    """Predictions and gradients: at most twice the distance of eager bfloat16 autocast from float64."""
    exact_model = copy.deepcopy(model).double()
    with torch.no_grad():
        exact_prediction = exact_model(pixels.double(), masks)
    _, exact = gradients(EagerIJEPAStep(exact_model), pixels.double(), masks)

    def prediction_error(predict: Callable[[], Tensor]) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return (predict().double() - exact_prediction).norm().item()

    def gradient_error(step: Step) -> float:
        _, seen = gradients(step, pixels, masks)
        return sum((seen[name] - exact[name]).square().sum().item() for name in exact) ** 0.5

    eager, ours = (make(model, precision="bfloat16") for make in (EagerIJEPAStep, IJEPAStep))
    context, target = (rows.split(len(pixels)) for rows in masks)
    eager_error = prediction_error(lambda: eager.predictor(eager.encoder(pixels, context), context, target))
    assert 0 < prediction_error(lambda: model(pixels, masks)) < 2 * eager_error
    assert 0 < gradient_error(ours) < 2 * gradient_error(eager)


def test_state_dicts_are_exchangeable(model: IJEPA, pixels: Tensor, masks: Masks) -> None:
    """A run may change between the two in its midst, optimizer state included."""
    eager = EagerIJEPAStep(copy.deepcopy(model))
    eager.step(pixels, masks, **RATES)
    ours = IJEPAStep(model)
    ours.load_state_dict(copy.deepcopy(eager.state_dict()))
    losses = [step.step(pixels, masks, **RATES).item() for step in (eager, ours, eager, ours)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[3] == pytest.approx(losses[2], rel=1e-5)
