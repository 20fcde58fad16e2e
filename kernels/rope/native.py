"""3-D rotary positions on the CPU in C++ (cpu.cpp)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime import native
from .tables import Tables

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(tables: Tables, tensors: Sequence[Tensor]) -> list[str]:
    if tensors[0].dtype not in _TYPES:
        return [f"the tensors are {tensors[0].dtype}; the kernel takes float32, bfloat16 and float16"]
    return []


def rotate(tables: Tables, tensors: Sequence[Tensor], transposed: bool) -> list[Tensor]:
    query, key = (x if x.ndim == 4 else x.unsqueeze(0) for x in (tensors[0], tensors[-1]))
    out = [torch.empty(x.shape, dtype=x.dtype) for x in tensors]
    two = len(tensors) == 2
    native.function("rope_3d")(
        tables.cos,
        tables.sin,
        tables.rows_per_sample,
        query,
        out[0],
        key if two else None,
        out[1] if two else None,
        transposed,
        torch.get_num_threads(),
    )
    return out
