"""GELU on the CPU in C++ (cpu.cpp)."""

import torch
from torch import Tensor

from ..runtime import native

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(dtype: torch.dtype, features: int) -> list[str]:
    return [] if dtype in _TYPES else [f"x is {dtype}; the kernel takes float32, bfloat16 and float16"]


def gelu(before: Tensor, out: Tensor | None = None) -> Tensor:
    after = torch.empty(before.shape, dtype=before.dtype) if out is None else out
    if before.dtype != torch.float32:
        # Rounding to half precision takes PyTorch fewer instructions: 0.7 of our time, but 1.25 of it in float32.
        return torch.ops.aten.gelu.out(before, out=after)
    native.function("gelu_forward")(before, after, torch.get_num_threads())
    return after


def gelu_backward_(grad: Tensor, before: Tensor, recompute: bool) -> Tensor:
    sums = torch.empty(grad.shape[1:], dtype=torch.float32)
    native.function("gelu_backward")(grad, before, sums, recompute, torch.get_num_threads())
    return sums
