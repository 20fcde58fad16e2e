"""Backwards that are not differentiable themselves, and say so.

`torch.autograd.function.once_differentiable` says so where the upstream gradient needs a gradient alone: a Hessian
would lack its term, without a word, where it runs through the saved inputs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


class _Refused(torch.autograd.Function):
    """Gradients as they are, with an error in the place of their derivative."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(gradient.detach() for gradient in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(f"{ctx.name}: expected one differentiation, got a second; its gradients have none")


def differentiable_once(name: str) -> Callable[[Backward], Backward]:
    """For the backward of an autograd.Function that saves its inputs: a derivative of what it returns raises
    RuntimeError, which begins with `name`."""

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def once(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            sources: list[Tensor] = []
            # With create_graph=True; a compiler refuses second derivatives by itself.
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                # Asked for beforehand, as a backward may write where its inputs lay.
                candidates = (*gradients, *ctx.saved_tensors)
                sources = [x for x in candidates if x is not None and x.requires_grad]
            with torch.no_grad():
                found = backward(ctx, *gradients)
            return _refused(name, found, sources) if sources else found

        return once

    return decorate


def _refused(
    name: str, gradients: tuple[Tensor | None, ...], sources: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    formed = [gradient for gradient in gradients if gradient is not None]
    marked = iter(_Refused.apply(name, len(formed), *formed, *sources))
    return tuple(None if gradient is None else next(marked) for gradient in gradients)
