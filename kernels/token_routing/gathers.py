"""Gathers, their gradients, and their registration for `torch.compile`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime import library
from ..runtime.derivative import differentiable_once
from .checks import check_gather
from .operation import OPERATION, accumulated, promoted, rows_of


def gather_all(
    x: Tensor,
    indices: dict[str, Tensor],
    position: Tensor | None,
    dtype: torch.dtype | None,
    implementation: str,
) -> Tensor:
    """The rows of all indices, one after another, `[T, D]`."""
    check_gather(x, indices, position)
    if dtype is None:
        dtype = promoted([x] if position is None else [x, position])
    given = list(indices.values())
    if library.as_node(x):
        return torch.ops.jepa_fast.gather_tokens(x, given, position, dtype, implementation)
    wanted = x.requires_grad or (position is not None and position.requires_grad)
    if torch.is_grad_enabled() and wanted:
        return _Gather.apply(x, position, dtype, implementation, *given)
    return _gather(x, given, position, dtype, implementation)


def _gather(
    x: Tensor, indices: Sequence[Tensor], position: Tensor | None, dtype: torch.dtype, implementation: str
) -> Tensor:
    tensors = [x] if position is None else [x, position]
    module = OPERATION.choose(implementation, x.device, tensors, dtype)
    out = torch.empty(sum(i.numel() for i in indices), x.shape[2], dtype=dtype, device=x.device)
    parts = out.split([index.numel() for index in indices])
    for place, (index, part) in enumerate(zip(indices, parts, strict=True)):
        name = "index" if len(indices) == 1 else f"indices[{place}]"
        module.gather(name, rows_of(x), index.contiguous(), position, part)
    return out


def scatter(
    grad: Tensor,
    indices: Sequence[Tensor],
    samples: int,
    length: int,
    dtype: torch.dtype,
    implementation: str,
) -> Tensor:
    """`[B, N, D]`: the sums of the rows of grad `[T, D]` by sample and token."""
    # Each further index adds to what the ones before left, which half precision would round.
    between = dtype if len(indices) == 1 else torch.promote_types(dtype, torch.float32)
    module = OPERATION.choose(implementation, grad.device, [grad], between)
    sums = torch.empty(samples, length, grad.shape[1], dtype=between, device=grad.device)
    parts = grad.contiguous().split([index.numel() for index in indices])
    for place, (index, part) in enumerate(zip(indices, parts, strict=True)):
        module.scatter(part.view(*index.shape, grad.shape[1]), index.contiguous(), sums, place > 0)
    return sums.to(dtype)


class _Source(NamedTuple):
    """What a gather's gradients have to know of x and position."""

    samples: int
    length: int
    x_dtype: torch.dtype
    position_dtype: torch.dtype | None


def _source(x: Tensor, position: Tensor | None) -> _Source:
    return _Source(x.shape[0], x.shape[1], x.dtype, None if position is None else position.dtype)


def _gather_gradients(
    scatter: Callable[..., Tensor],
    grad: Tensor,
    indices: Sequence[Tensor],
    source: _Source,
    wanted: Sequence[bool],  # of x, of position
    implementation: str,
) -> tuple[Tensor | None, Tensor | None]:
    sizes = (source.samples, source.length)
    if not wanted[1]:
        return scatter(grad, indices, *sizes, source.x_dtype, implementation), None
    sums = scatter(grad, indices, *sizes, accumulated(grad), implementation)
    return sums.to(source.x_dtype) if wanted[0] else None, sums.sum(0).to(source.position_dtype)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        position: Tensor | None,
        dtype: torch.dtype,
        implementation: str,
        *indices: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*indices)
        ctx.source, ctx.implementation = _source(x, position), implementation
        return _gather(x, indices, position, dtype, implementation)

    @staticmethod
    @differentiable_once("gather_tokens")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        indices, wanted = ctx.saved_tensors, ctx.needs_input_grad[:2]
        found = _gather_gradients(scatter, grad, indices, ctx.source, wanted, ctx.implementation)
        return *found, None, None, *(None for _ in indices)


library.define(
    "gather_tokens(Tensor x, Tensor[] indices, Tensor? position, ScalarType dtype, str implementation) -> Tensor",
    _gather,
    lambda x, indices, position, dtype, _: x.new_empty(
        (sum(index.numel() for index in indices), x.shape[2]), dtype=dtype
    ),
)
library.define(
    "gather_tokens_backward(Tensor grad, Tensor[] indices, SymInt samples, SymInt length, ScalarType dtype,"
    " str implementation) -> Tensor",
    scatter,
    lambda grad, indices, samples, length, dtype, _: grad.new_empty(
        (samples, length, grad.shape[1]), dtype=dtype
    ),
)


def _keep_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, indices, position, _, ctx.implementation = inputs
    ctx.save_for_backward(*indices)
    ctx.source = _source(x, position)


def _registered_gather_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    scatter = torch.ops.jepa_fast.gather_tokens_backward
    wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[2])
    indices = list(ctx.saved_tensors)
    grad_x, grad_position = _gather_gradients(scatter, grad, indices, ctx.source, wanted, ctx.implementation)
    return grad_x, [None] * len(indices), grad_position, None, None


torch.library.register_autograd(
    "jepa_fast::gather_tokens", _registered_gather_gradients, setup_context=_keep_gather
)
