"""V-JEPA 2-AC against its published training step, and what its step refuses."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import models
from jepa_fast.bench.baselines.vjepa2_ac import EagerVJEPA2ACStep
from jepa_fast.training.action_step import Trajectories, VJEPA2ACStep
from jepa_fast.training.steps import make_step

RATES = {"lr": 3e-4, "weight_decay": 0.1, "momentum": 0.99}
SIZES: dict[str, Any] = {
    "image_size": 48, "dim": 48, "depth": 2, "num_heads": 2, "mlp_dim": 96,
    "predictor_dim": 48, "predictor_depth": 2, "predictor_heads": 2,
}  # fmt: skip


def make_model(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    torch.manual_seed(0)
    return models.create("vjepa2_ac_vitg", **SIZES | changes).to(dtype)


def trajectories(
    dtype: torch.dtype = torch.float32, *, frames: int = 4, extrinsics: bool = False, seed: int = 1
) -> Trajectories:
    torch.manual_seed(seed)
    drawn = [(3, frames, 48, 48), (frames - 1, 7), (frames, 7), (frames, 6)]
    batch = [torch.randn(2, *shape).to(dtype) for shape in drawn]
    return Trajectories(*batch[:3], batch[3] if extrinsics else None)


@pytest.mark.parametrize("extrinsics", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_twenty_steps(dtype: torch.dtype, tolerance: float, extrinsics: bool) -> None:
    model = make_model(dtype, extrinsics=extrinsics)
    before = copy.deepcopy(model.encoder.state_dict())
    eager, ours = EagerVJEPA2ACStep(model), make_step(model)
    assert isinstance(ours, VJEPA2ACStep)
    losses: list[list[float]] = [[], []]
    for number in range(20):
        batch = trajectories(dtype, extrinsics=extrinsics, seed=number % 3)
        for step, curve in zip((eager, ours), losses, strict=True):
            curve.append(step.step(batch, None, **RATES).item())
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert losses[0][-1] < 0.98 * losses[0][0]
    theirs = eager.predictor.state_dict()
    for key, value in model.predictor.state_dict().items():
        if dtype == torch.float64:
            torch.testing.assert_close(value, theirs[key], rtol=1e-6, atol=1e-9, msg=key)
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[key])


def gradients(step: Any, batch: Trajectories) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def note(*_: object) -> None:
        for name, parameter in step.predictor.named_parameters():
            if parameter.grad is not None:
                seen[name] = parameter.grad.double().clone()

    step.optimizer.register_step_pre_hook(note)
    step.step(batch, None, lr=0.0, weight_decay=0.0, momentum=1.0)
    return seen


def test_bfloat16_error_is_that_of_eager() -> None:
    """Of all gradients together: at most twice the distance of eager bfloat16 autocast from float64."""
    model, batch = make_model(), trajectories()
    exact = gradients(make_step(copy.deepcopy(model).double()), trajectories(torch.float64))
    eager = gradients(EagerVJEPA2ACStep(model, precision="bfloat16"), batch)
    ours = gradients(make_step(model, precision="bfloat16"), batch)

    def error(found: dict[str, Tensor]) -> float:
        return sum((found[key] - exact[key]).square().sum().item() for key in exact) ** 0.5

    assert ours.keys() == exact.keys()
    assert 0 < error(ours) < 2 * error(eager)


def test_plain_operators_compute_the_same() -> None:
    fused, plain = (make_step(make_model(), fused=on) for on in (True, False))
    for number in range(3):
        batch = trajectories(seed=number)
        expected = plain.step(batch, None, **RATES).item()
        assert fused.step(batch, None, **RATES).item() == pytest.approx(expected, rel=2e-5)


def test_a_longer_rollout_feeds_its_predictions_back() -> None:
    model = make_model(torch.float64)
    batch = trajectories(torch.float64)
    eager = EagerVJEPA2ACStep(model)
    eager.rollout = 3
    longer = make_step(model, rollout=3)
    found = longer.loss(batch, None).item()
    assert found == pytest.approx(eager.step(batch, None, **RATES).item(), rel=1e-10)
    assert found != pytest.approx(make_step(model, rollout=1).loss(batch, None).item(), rel=1e-3)


def test_its_state_continues_elsewhere() -> None:
    first, second = make_step(make_model()), make_step(make_model())
    first.step(trajectories(), None, **RATES)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    losses = [step.step(trajectories(seed=2), None, **RATES).item() for step in (first, second)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pixels": torch.zeros(2, 3, 2, 48, 48)},
            r"batch.pixels: expected .* with T above rollout = 2, got",
        ),
        ({"pixels": torch.zeros(2, 3, 4, 48, 32)}, r"batch.pixels: expected .* \[B, 3, 4, 48, 48\]"),
        ({"actions": torch.zeros(2, 4, 7)}, r"batch.actions: expected torch.float32 \[2, 3, 7\] on cpu, got"),
        ({"states": torch.zeros(2, 4, 6)}, r"batch.states: expected torch.float32 \[2, 4, 7\] on cpu, got"),
        ({"extrinsics": torch.zeros(2, 4, 6)}, r"batch.extrinsics: expected None, got"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Tensor], message: str) -> None:
    step = make_step(make_model())
    with pytest.raises(ValueError, match=message):
        step.step(trajectories()._replace(**changes), None, **RATES)


def test_other_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="rollout: expected at least 1 frame, got 0"):
        make_step(make_model(), rollout=0)
    step = make_step(make_model())
    with pytest.raises(ValueError, match="batch: expected Trajectories, got Tensor"):
        step.step(torch.zeros(2, 3, 4, 48, 48), None, **RATES)
    with pytest.raises(ValueError, match="masks: expected None, got list"):
        step.step(trajectories(), [], **RATES)
