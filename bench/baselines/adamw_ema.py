"""The optimizer step and the teacher update after it as published training code writes them, and PyTorch's fastest."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jepa_fast.bench.baselines.ema import ema_loop_


def default_and_loop(
    parameters: Sequence[Tensor], teacher: Sequence[Tensor], lr: float, weight_decay: float, momentum: float
) -> Callable[[], None]:
    """torch.optim.AdamW as it comes, then one tensor at a time, as in I-JEPA."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)

    def step() -> None:
        optimizer.step()
        ema_loop_(teacher, parameters, momentum)

    return step


def fused_and_foreach(
    parameters: Sequence[Tensor], teacher: Sequence[Tensor], lr: float, weight_decay: float, momentum: float
) -> Callable[[], None]:
    """Fused AdamW, then the whole list scaled and the scaled student added, as in V-JEPA 2."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step() -> None:
        optimizer.step()
        torch._foreach_mul_(list(teacher), momentum)
        torch._foreach_add_(list(teacher), list(parameters), alpha=1.0 - momentum)

    return step


def and_copies(
    step: Callable[[], None],
    parameters: Sequence[Tensor],
    teacher: Sequence[Tensor],
    copies: Sequence[Tensor],
    teacher_copies: Sequence[Tensor],
) -> Callable[[], None]:
    """`step`, then a low-precision copy of both networks, into memory that is there already."""

    @torch.no_grad()
    def step_and_copies() -> None:
        step()
        torch._foreach_copy_(list(copies), list(parameters))
        torch._foreach_copy_(list(teacher_copies), list(teacher))

    return step_and_copies
