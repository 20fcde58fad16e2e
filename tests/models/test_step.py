"""The training step: what it changes, what it keeps, what it refuses."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import models
from jepa_fast.masks import Masks
from jepa_fast.training.step import IJEPAStep

RATES = {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.9}


def test_teacher_is_the_moving_average(model: models.IJEPA, pixels: Tensor, masks: Masks) -> None:
    step = IJEPAStep(model)
    before = copy.deepcopy(step.teacher.state_dict())
    loss = step.step(pixels, masks, **RATES)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert not loss.requires_grad
    for name, encoder in step.encoder.state_dict().items():
        expected = 0.9 * before[name] + 0.1 * encoder
        torch.testing.assert_close(step.teacher.state_dict()[name], expected, rtol=1e-6, atol=1e-7)
    assert all(parameter.grad is None for parameter in [*model.parameters(), *step.teacher.parameters()])
    assert not any(parameter.requires_grad for parameter in step.teacher.parameters())


def test_every_trained_parameter_moves(model: models.IJEPA, pixels: Tensor, masks: Masks) -> None:
    before = copy.deepcopy(model.state_dict())
    IJEPAStep(model).step(pixels, masks, **RATES)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_weight_decay_spares_one_dimension(model: models.IJEPA, pixels: Tensor, masks: Masks) -> None:
    step = IJEPAStep(model)
    step.step(pixels, masks, lr=1e-3, weight_decay=0.3, momentum=1.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert [group["lr"] for group in step.optimizer.param_groups] == [1e-3] * 4
    assert [group["weight_decay"] for group in step.optimizer.param_groups] == [0.3, 0.3, 0.0, 0.0]
    for group, half, dimensions in zip(
        step.optimizer.param_groups, ("encoder", "predictor") * 2, (">1", ">1", "1", "1"), strict=True
    ):
        for parameter in group["params"]:
            assert names[parameter].startswith(half)
            assert (parameter.ndim > 1) == (dimensions == ">1")
    assert sum(len(group["params"]) for group in step.optimizer.param_groups) == len(names)


def test_a_given_teacher_is_used(model: models.IJEPA, pixels: Tensor, masks: Masks) -> None:
    teacher = copy.deepcopy(model.encoder)
    torch.nn.init.constant_(teacher.norm.bias, 3.0)
    step = IJEPAStep(model, teacher=teacher)
    assert step.teacher is teacher
    other = IJEPAStep(copy.deepcopy(model))
    assert step.step(pixels, masks, **RATES) != other.step(pixels, masks, **RATES)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_state_dict_continues_bit_for_bit(
    model: models.IJEPA, pixels: Tensor, masks: Masks, precision: Any
) -> None:
    first = IJEPAStep(copy.deepcopy(model), precision=precision)
    first.step(pixels, masks, **RATES)
    second = IJEPAStep(model, precision=precision)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert set(first.state_dict()) == {"encoder", "predictor", "teacher", "optimizer"}
    for _ in range(2):
        assert torch.equal(first.step(pixels, masks, **RATES), second.step(pixels, masks, **RATES))
    for name, value in first.encoder.state_dict().items():
        assert torch.equal(value, second.encoder.state_dict()[name]), name


def test_unknown_precision(model: models.IJEPA) -> None:
    with pytest.raises(ValueError, match="precision: expected 'float32' or 'bfloat16', got 'float16'"):
        IJEPAStep(model, precision="float16")  # type: ignore[arg-type]


def changed(masks: Masks, name: str, position: tuple[int, int], value: int) -> Masks:
    index = getattr(masks, name).clone()
    index[position] = value
    return masks._replace(**{name: index})


def test_wrong_pixels(model: models.IJEPA, pixels: Tensor, masks: Masks) -> None:
    step = IJEPAStep(model)
    expected = r"pixels: expected torch.float32 \[B, 3, 96, 96\] on cpu, got "
    for wrong, got in (
        (pixels[0], r"torch.float32 \[3, 96, 96\] on cpu"),
        (pixels[:, :, :80], r"torch.float32 \[3, 3, 80, 96\] on cpu"),
        (pixels[:0], r"torch.float32 \[0, 3, 96, 96\] on cpu"),
        (pixels.double(), r"torch.float64 \[3, 3, 96, 96\] on cpu"),
        (pixels.to("meta"), r"torch.float32 \[3, 3, 96, 96\] on meta"),
    ):
        with pytest.raises(ValueError, match=expected + got):
            step.step(wrong, masks, **RATES)


@pytest.mark.parametrize("name", ["context", "target"])
def test_wrong_masks(model: models.IJEPA, pixels: Tensor, masks: Masks, name: str) -> None:
    step = IJEPAStep(model)
    index = getattr(masks, name)
    expected = rf"masks.{name}: expected torch.int64 \[multiple of 3, K\] on cpu, got "
    for wrong, got in (
        (index.int(), "torch.int32"),
        (index[:-1], rf"torch.int64 \[{len(index) - 1}, "),
        (index[0], "torch.int64"),
        (index[:, :0], rf"torch.int64 \[{len(index)}, 0\]"),
    ):
        with pytest.raises(ValueError, match=expected + got):
            step.step(pixels, masks._replace(**{name: wrong}), **RATES)
    for value in (-1, 144):
        with pytest.raises(
            ValueError, match=rf"masks.{name}: expected values in \[0, 144\), got {value} at \[2, 1\]"
        ):
            step.step(pixels, changed(masks, name, (2, 1), value), **RATES)
