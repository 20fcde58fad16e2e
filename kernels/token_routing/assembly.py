"""The predictor's input, its gradients, and its registration for `torch.compile`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..runtime import library
from ..runtime.derivative import differentiable_once
from .gathers import scatter as scatter_rows
from .operation import OPERATION, accumulated, rows_of


def assemble(
    context: Tensor,
    context_index: Tensor,
    target_index: Tensor,
    position: Tensor,
    mask_token: Tensor,
    num_context: int,
    dtype: torch.dtype,
    implementation: str,
) -> Tensor:
    module = OPERATION.choose(implementation, context.device, [context, position, mask_token], dtype)
    contexts, seen, features = context.shape
    samples = contexts // num_context
    sequences = len(target_index) * num_context
    shape = (sequences, seen + target_index.shape[1], features)
    out = torch.empty(shape, dtype=dtype, device=context.device)
    if out.numel():
        token = mask_token.reshape(features)
        indices = context_index.contiguous(), target_index.contiguous()
        module.assemble(rows_of(context), *indices, position, token, samples, out)
    return out


def assemble_backward(
    grad: Tensor, contexts: int, seen: int, dtype: torch.dtype, implementation: str
) -> tuple[Tensor, Tensor]:
    """The gradients of context `[E * B, Nc, D]` in `dtype`, and of mask_token `[D]` in float32 or float64."""
    module = OPERATION.choose(implementation, grad.device, [grad], dtype)
    make = torch.empty if grad.numel() else torch.zeros
    grad_context = make(contexts, seen, grad.shape[2], dtype=dtype, device=grad.device)
    grad_mask = make(grad.shape[2], dtype=accumulated(grad), device=grad.device)
    if grad.numel():
        module.assemble_backward(grad.contiguous(), grad_context, grad_mask)
    return grad_context, grad_mask


def _position_gradient(
    scatter: Callable[..., Tensor],
    grad: Tensor,
    grad_context: Tensor,
    context_index: Tensor,
    target_index: Tensor,
    samples: int,
    position: tuple[int, torch.dtype],  # N and dtype
    implementation: str,
) -> Tensor:
    """The gradient of the table; tables are fixed in I-JEPA and V-JEPA, so this is made of the parts at hand."""
    length, dtype = position
    seen, hidden = grad_context.shape[1], target_index.shape[1]
    repeated = target_index.unflatten(0, (-1, 1, samples)).expand(
        -1, len(context_index) // samples, -1, hidden
    )
    by_token = [
        scatter(rows, [index], samples, length, accumulated(grad), implementation).sum(0)
        for rows, index in (
            (grad_context.flatten(0, 1), context_index),
            (grad[:, seen:].flatten(0, 1), repeated.flatten(0, 2)),
        )
    ]
    return (by_token[0] + by_token[1]).to(dtype)


def _keep_assembly(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    context, context_index, target_index, position, mask_token, num_context, _, ctx.implementation = inputs
    ctx.save_for_backward(context_index, target_index)
    ctx.samples, ctx.dtype = context.shape[0] // num_context, context.dtype
    ctx.position = (position.shape[0], position.dtype)
    ctx.mask = (mask_token.shape, mask_token.dtype)


def _assembly_gradients(
    ctx: Any, grad: Tensor, backward: Callable[..., tuple[Tensor, Tensor]], scatter: Callable[..., Tensor]
) -> tuple[Tensor | None, ...]:
    context_index, target_index = ctx.saved_tensors
    of_position = ctx.needs_input_grad[3]
    dtype = accumulated(grad) if of_position else ctx.dtype
    grad_context, grad_mask = backward(grad, *context_index.shape, dtype, ctx.implementation)
    shape, mask_dtype = ctx.mask
    found = [grad_context.to(ctx.dtype), None, None, None, grad_mask.to(mask_dtype).view(shape)]
    if of_position:
        found[3] = _position_gradient(
            scatter, grad, grad_context, context_index, target_index, ctx.samples, ctx.position, ctx.implementation
        )  # fmt: skip
    return *found, None, None, None


class Assembly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        out = assemble(*arguments)
        _keep_assembly(ctx, arguments, out)
        return out

    @staticmethod
    @differentiable_once("assemble_predictor_tokens")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _assembly_gradients(ctx, grad, assemble_backward, scatter_rows)


library.define(
    "assemble_predictor_tokens(Tensor context, Tensor context_index, Tensor target_index, Tensor position,"
    " Tensor mask_token, int num_context, ScalarType dtype, str implementation) -> Tensor",
    assemble,
    lambda context, context_index, target_index, position, mask_token, num_context, dtype, _: (
        context.new_empty(
            (
                target_index.shape[0] * num_context,
                context.shape[1] + target_index.shape[1],
                context.shape[2],
            ),
            dtype=dtype,
        )
    ),
)
library.define(
    "assemble_predictor_tokens_backward(Tensor grad, SymInt contexts, SymInt seen, ScalarType dtype,"
    " str implementation) -> (Tensor, Tensor)",
    assemble_backward,
    lambda grad, contexts, seen, dtype, _: (
        grad.new_empty((contexts, seen, grad.shape[2]), dtype=dtype),
        grad.new_empty(grad.shape[2], dtype=accumulated(grad)),
    ),
)


def _registered_assembly_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    ops = torch.ops.jepa_fast
    return _assembly_gradients(ctx, grad, ops.assemble_predictor_tokens_backward, ops.gather_tokens_backward)


torch.library.register_autograd(
    "jepa_fast::assemble_predictor_tokens", _registered_assembly_gradients, setup_context=_keep_assembly
)
