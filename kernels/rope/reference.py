"""3-D rotary positions in plain PyTorch: the oracle, and the fallback.

    out[2i]     = x[2i]     cos[2i]     - x[2i + 1] sin[2i]
    out[2i + 1] = x[2i + 1] cos[2i + 1] + x[2i]     sin[2i + 1]

for both pairings; which angle a channel has is in the tables (positions.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .tables import Tables


def why_not(tables: Tables, tensors: Sequence[Tensor]) -> list[str]:
    return []


def rotate(tables: Tables, tensors: Sequence[Tensor], transposed: bool) -> list[Tensor]:
    """Each of `tensors`, rotated, or taken through the transposed map, which is the backward."""
    return [_rotate(tables, tensor, transposed) for tensor in tensors]


def _rotate(tables: Tables, x: Tensor, transposed: bool) -> Tensor:
    working = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = (_by_token(table, tables.rows_per_sample, x).to(working) for table in tables[:2])
    wide = x.to(working)
    if transposed:
        even, odd = (wide * sin).unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((odd, -even), -1).flatten(-2)
        return (wide * cos + turned).to(x.dtype)
    even, odd = wide.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-odd, even), -1).flatten(-2)
    return (wide * cos + turned * sin).to(x.dtype)


def _by_token(table: Tensor, rows_per_sample: int, x: Tensor) -> Tensor:
    """The table with the dimensions of x `[B, N, H, D]` or `[T, H, D]`, to broadcast over heads."""
    if rows_per_sample:
        table = table.view(-1, rows_per_sample, table.shape[-1])
    return table.unsqueeze(-2)
