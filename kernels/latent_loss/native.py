"""Latent prediction loss on the CPU in C++ (cpu.cpp)."""

import torch
from torch import Tensor

from ..runtime import native
from .index import outside
from .settings import Settings

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(prediction: Tensor, target: Tensor) -> list[str]:
    return [
        f"{name} is {tensor.dtype}; the kernel takes float32, bfloat16 and float16"
        for name, tensor in (("prediction", prediction), ("target", target))
        if tensor.dtype not in _TYPES
    ]


def loss_and_gradient(
    prediction: Tensor, target: Tensor, index: Tensor | None, settings: Settings, upstream: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    loss = torch.empty((), dtype=torch.float32)
    gradient = None if upstream is None else torch.empty(prediction.shape, dtype=prediction.dtype)
    bad_position = native.function("latent_loss")(
        prediction,
        target,
        index,
        loss,
        gradient,
        0.0 if upstream is None else float(upstream),
        settings.normalize_target,
        settings.eps,
        *settings.penalty(),
        torch.get_num_threads(),
    )
    if index is not None and bad_position >= 0:
        raise outside(index, bad_position, target)
    return loss, gradient
