"""V-JEPA 2-AC against its published training step and its formula, and what its step refuses."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def test_action_predictor_is_the_dense_formula() -> None:
    """Every token of a step sees its own and earlier steps; conditions rotate by time alone."""
    torch.manual_seed(0)
    sizes = {"image_size": 48, "dim": 24, "depth": 1, "num_heads": 2, "mlp_dim": 48, "predictor_depth": 2}
    model = models.create("vjepa2_ac_vitg", **sizes, predictor_dim=48, predictor_heads=2)
    with torch.no_grad():  # vectors that start at zero matter, too
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.double()
    steps, patches = 3, 9
    x = torch.randn(2, steps * patches, 24, dtype=torch.float64)
    actions, states = (torch.randn(2, steps, 7, dtype=torch.float64) for _ in range(2))
    found = model(x, actions, states)
    predictor = model.predictor

    conditions = torch.stack([predictor.action_encoder(actions), predictor.state_encoder(states)], dim=2)
    tokens = torch.cat([conditions, predictor.predictor_embed(x).view(2, steps, patches, -1)], dim=2).flatten(
        1, 2
    )
    grid = torch.tensor([[0, 0]] * 2 + [[row, column] for row in range(3) for column in range(3)])
    place = torch.cat([torch.cat([torch.full((11, 1), step), grid], dim=1) for step in range(steps)])
    visible = torch.arange(33)[:, None] // 11 >= torch.arange(33) // 11

    def turn(values: Tensor) -> Tensor:  # [2, heads, 33, 24]: segments of 8 for frame, row, column
        out = values.clone()
        for axis in range(3):
            for pair in range(4):
                a, b = 8 * axis + 2 * pair, 8 * axis + 2 * pair + 1
                angles = [
                    place[:, axis] * 10000.0 ** (-(number % 4) / 4) for number in (2 * pair, 2 * pair + 1)
                ]
                out[..., a] = values[..., a] * angles[0].cos() - values[..., b] * angles[0].sin()
                out[..., b] = values[..., b] * angles[1].cos() + values[..., a] * angles[1].sin()
        return out

    def norm(values: Tensor, layer: nn.LayerNorm) -> Tensor:
        return F.layer_norm(values, (48,), layer.weight, layer.bias, 1e-6)

    for block in predictor.predictor_blocks:
        qkv = block.attn.qkv(norm(tokens, block.norm1)).view(2, 33, 3, 2, 24).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(turn(qkv[0]), turn(qkv[1]), qkv[2], attn_mask=visible)
        tokens = tokens + block.attn.proj(out.transpose(1, 2).flatten(2))
        tokens = tokens + block.mlp.fc2(F.gelu(block.mlp.fc1(norm(tokens, block.norm2))))
    tokens = norm(tokens, predictor.predictor_norm).view(2, steps, 11, 48)[:, :, 2:].flatten(1, 2)
    torch.testing.assert_close(found, predictor.predictor_proj(tokens), rtol=1e-6, atol=1e-7)
