"""Query, key and value that are parts of one tensor, and their gradients put together again."""

from typing import Any

import torch
from torch import Tensor

from ..runtime import library


def are_parts(*tensors: Tensor) -> bool:
    """Whether these are `joint.unbind(-3)` of a contiguous `[..., parts, heads, head_dim]`."""
    first = tensors[0]
    heads, head_dim = first.shape[-2:]
    size, steps = heads * head_dim, first.stride()
    if steps[-3:] != (len(tensors) * size, head_dim, 1):
        return False
    if first.ndim == 4 and steps[0] != first.shape[1] * steps[1]:
        return False
    start, storage = first.storage_offset(), first.untyped_storage().data_ptr()
    return all(
        x.shape == first.shape
        and x.stride() == steps
        and x.storage_offset() == start + i * size
        and x.untyped_storage().data_ptr() == storage
        for i, x in enumerate(tensors)
    )


def parts_of(joint: Tensor) -> tuple[Tensor, ...]:
    """`joint.unbind(-3)` of `[..., parts, heads, head_dim]`, whose backward copies only gradients that do not already
    lie side by side, as those of the attention on the CPU do."""
    if library.as_node(joint) or not joint.requires_grad:
        return joint.unbind(-3)
    return _Parts.apply(joint)


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joint: Tensor) -> tuple[Tensor, ...]:
        return joint.unbind(-3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        first = grads[0]
        if not are_parts(*grads):
            return torch.stack(grads, dim=-3)
        heads, head_dim = first.shape[-2:]
        shape = (*first.shape[:-2], len(grads), heads, head_dim)
        steps = (*first.stride()[:-2], heads * head_dim, head_dim, 1)
        return first.as_strided(shape, steps)
