"""Fixed positional tables."""

import torch
from torch import Tensor

WAVELENGTH_BASE = 10000.0


def sincos_2d(dim: int, rows: int, columns: int) -> Tensor:
    """Fixed two-dimensional sine-cosine table, one row for each patch in row-major order.

    The first half of the channels encodes the column and the second half the row. Each half is `[sin | cos]`
    of the coordinate times the frequencies `10000 ** (-j / (dim / 4))`, `j = 0 .. dim / 4 - 1`. This is the
    order in which I-JEPA (arXiv:2301.08243) and MAE (arXiv:2111.06377) build their tables.

    Args:
        dim: number of channels, a multiple of 4.
        rows, columns: size of the patch grid.

    Returns:
        float32 `[rows * columns, dim]`, computed in float64 and rounded once.

    Raises:
        ValueError: `dim` is not a positive multiple of 4, or the grid is empty.
    """
    if dim <= 0 or dim % 4:
        raise ValueError(f"dim: expected a positive multiple of 4, got {dim}")
    if rows < 1 or columns < 1:
        raise ValueError(f"rows, columns: expected at least 1 each, got {rows} and {columns}")
    quarter = dim // 4
    frequency = WAVELENGTH_BASE ** -(torch.arange(quarter, dtype=torch.float64) / quarter)

    def encode(side: int) -> Tensor:
        angle = torch.outer(torch.arange(side, dtype=torch.float64), frequency)
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # [side, dim / 2]

    by_column = encode(columns).expand(rows, columns, dim // 2)
    by_row = encode(rows)[:, None].expand(rows, columns, dim // 2)
    return torch.cat([by_column, by_row], dim=2).reshape(rows * columns, dim).float()
