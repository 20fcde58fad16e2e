"""The teacher update as published training code writes it, and PyTorch's fastest built-in form."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def ema_loop_(targets: Sequence[Tensor], sources: Sequence[Tensor], momentum: float) -> None:
    """One parameter at a time, as in I-JEPA: scale the target, then add the scaled source."""
    for target, source in zip(targets, sources, strict=True):
        target.mul_(momentum).add_((1.0 - momentum) * source.detach())


@torch.no_grad()
def ema_foreach_lerp_(targets: Sequence[Tensor], sources: Sequence[Tensor], momentum: float) -> None:
    """The whole list in one call. Source and target must have one dtype."""
    torch._foreach_lerp_(list(targets), list(sources), 1.0 - momentum)
