"""Token routing on the CPU in C++ (cpu.cpp)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime import native
from .index import outside

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[str]:
    dtypes = dict.fromkeys([*(tensor.dtype for tensor in tensors), dtype])
    return [
        f"a tensor is {d}; the kernel takes float32, bfloat16 and float16" for d in dtypes if d not in _TYPES
    ]


def gather(name: str, x: Tensor, index: Tensor, position: Tensor | None, out: Tensor) -> None:
    table = None if position is None else position.float().contiguous()
    bad = native.function("token_gather")(x, index, table, out, torch.get_num_threads())
    if bad >= 0:
        raise outside(name, index, bad, x.shape[1])


def scatter(grad: Tensor, index: Tensor, out: Tensor, accumulate: bool) -> None:
    native.function("token_scatter")(grad, index, out, accumulate, torch.get_num_threads())


def assemble(
    context: Tensor,
    context_index: Tensor,
    target_index: Tensor,
    position: Tensor,
    mask_token: Tensor,
    samples: int,
    out: Tensor,
) -> None:
    bad = native.function("token_assemble")(
        context,
        context_index,
        target_index,
        position.float().contiguous(),
        mask_token.float().contiguous(),
        samples,
        out,
        torch.get_num_threads(),
    )
    if bad >= context_index.numel():
        raise outside("target_index", target_index, bad - context_index.numel(), len(position))
    if bad >= 0:
        raise outside("context_index", context_index, bad, len(position))


def assemble_backward(grad: Tensor, grad_context: Tensor, grad_mask: Tensor) -> None:
    native.function("token_assemble_backward")(grad, grad_context, grad_mask, torch.get_num_threads())
