"""What a step refuses. Everything is checked before anything is written."""

import math

import torch
from torch import Tensor

from ..ema.plan import check_aliasing
from .tensors import Tensors

NONFINITE = ("propagate", "skip", "raise")


def check_tensors(tensors: Tensors) -> None:
    """Everything about the lasting tensors. Raises ValueError or TypeError that names the first one at fault."""
    parameters = tensors.parameters
    for i, parameter in enumerate(parameters):
        if parameter.layout != torch.strided:
            raise TypeError(f"parameters[{i}]: expected a dense tensor, got {parameter.layout}")
        if parameter.is_complex():
            raise TypeError(f"parameters[{i}]: expected a real dtype, got {parameter.dtype}")
        for name, part in tensors.lasting():
            tensor = part[i]
            if tensor is None:
                continue
            if tensor.device != parameters[0].device:
                raise ValueError(
                    f"{name}[{i}]: expected device {parameters[0].device} of parameters[0], got {tensor.device}"
                )
            if name == "steps":
                if tensor.numel() != 1 or not tensor.is_floating_point():
                    raise ValueError(
                        f"steps[{i}]: expected one floating-point element, got {tensor.dtype} {list(tensor.shape)}"
                    )
                continue
            if tensor.shape != parameter.shape:
                raise ValueError(
                    f"{name}[{i}]: expected shape {list(parameter.shape)} of parameters[{i}], "
                    f"got {list(tensor.shape)}"
                )
            follows = name == "teachers" and not parameter.is_floating_point()
            if (
                tensor.dtype != parameter.dtype
                if follows
                else not (name == "parameters" or tensor.is_floating_point())
            ):
                expected = parameter.dtype if follows else "a floating-point dtype"
                raise TypeError(f"{name}[{i}]: expected {expected}, got {tensor.dtype}")
        if not parameter.is_floating_point() and (
            tensors.exp_avgs[i] is not None
            or tensors.copies[i] is not None
            or tensors.teacher_copies[i] is not None
        ):
            raise TypeError(f"parameters[{i}]: expected a floating-point dtype, got {parameter.dtype}")
    if parameters and parameters[0].device.type != "meta":
        check_aliasing(
            (f"{name}[{i}]", tensor, name != "parameters" or tensors.exp_avgs[i] is not None)
            for name, part in tensors.lasting()
            for i, tensor in enumerate(part)
            if tensor is not None
        )


def check_gradient(i: int, parameter: Tensor, gradient: Tensor) -> None:
    """Raises ValueError or TypeError for a gradient that does not go with its parameter."""
    if gradient.layout != torch.strided:
        raise TypeError(
            f"gradients[{i}]: expected a dense tensor, got {gradient.layout}; torch.optim.SparseAdam takes those"
        )
    if not gradient.is_floating_point():
        raise TypeError(f"gradients[{i}]: expected a real floating-point dtype, got {gradient.dtype}")
    if gradient.shape != parameter.shape:
        raise ValueError(
            f"gradients[{i}]: expected shape {list(parameter.shape)} of parameters[{i}], got {list(gradient.shape)}"
        )
    if gradient.device != parameter.device:
        raise ValueError(
            f"gradients[{i}]: expected device {parameter.device} of parameters[{i}], got {gradient.device}"
        )


def check_gradients(tensors: Tensors) -> None:
    """Everything about this step's gradients. Raises ValueError or TypeError that names the first one at fault."""
    for i, (parameter, gradient) in enumerate(zip(tensors.parameters, tensors.gradients, strict=True)):
        if gradient is None:
            continue
        check_gradient(i, parameter, gradient)
        if tensors.exp_avgs[i] is None or tensors.exp_avg_sqs[i] is None or tensors.steps[i] is None:
            lacking = next(
                name for name in ("exp_avgs", "exp_avg_sqs", "steps") if getattr(tensors, name)[i] is None
            )
            raise ValueError(f"{lacking}[{i}]: expected a tensor, as gradients[{i}] is one, got None")


def check_hyperparameters(
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float | Tensor,
    momentum: float | Tensor,
) -> None:
    """Raises ValueError for a value out of range; one that is held in device memory is not looked at."""
    if len(betas) != 2:
        raise ValueError(f"betas: expected two numbers in [0, 1), got {betas}")
    for name, value, least, most in (
        ("lr", lr, 0.0, math.inf),
        ("betas[0]", betas[0], 0.0, 1.0),
        ("betas[1]", betas[1], 0.0, 1.0),
        ("eps", eps, 0.0, math.inf),
        ("weight_decay", weight_decay, 0.0, math.inf),
        ("momentum", momentum, 0.0, 1.0),
    ):
        if isinstance(value, Tensor):
            if value.numel() != 1 or not value.is_floating_point():
                raise ValueError(
                    f"{name}: expected a number or one floating-point element, got {value.dtype} {list(value.shape)}"
                )
            continue
        if not (least <= value < most or (value == most == 1.0 and name == "momentum")):
            closing = "]" if name == "momentum" else ")"
            raise ValueError(f"{name}: expected a number in [{least:g}, {most:g}{closing}, got {value}")


def check_clipping(max_norm: float | None, nonfinite: str) -> None:
    """Raises ValueError."""
    if max_norm is not None and not max_norm > 0.0:
        raise ValueError(f"max_norm: expected a number above 0 or None, got {max_norm}")
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite: expected one of {', '.join(NONFINITE)}, got {nonfinite!r}")
