"""Fixed positional tables."""

import torch
import torch.nn.functional as F
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
    by_column = _encode(columns, dim // 2).expand(rows, columns, dim // 2)
    by_row = _encode(rows, dim // 2)[:, None].expand(rows, columns, dim // 2)
    return torch.cat([by_column, by_row], dim=2).reshape(rows * columns, dim).float()


def sincos_3d(dim: int, frames: int, rows: int, columns: int) -> Tensor:
    """Fixed three-dimensional sine-cosine table of V-JEPA (arXiv:2404.08471), tokens by frame, row and column.

    Frame, row and column have `2 * ceil(dim / 6)` channels each, one behind the other, cut to `dim`; each is
    `[sin | cos]` as in `sincos_2d`.

    Returns:
        float32 `[frames * rows * columns, dim]`, computed in float64 and rounded once.

    Raises:
        ValueError: `dim` is below 1, or the grid is empty.
    """
    if dim < 1:
        raise ValueError(f"dim: expected at least 1, got {dim}")
    if min(frames, rows, columns) < 1:
        raise ValueError(
            f"frames, rows, columns: expected at least 1 each, got {frames}, {rows} and {columns}"
        )
    width = 2 * -(-dim // 6)
    grid = (frames, rows, columns, width)
    parts = [
        _encode(frames, width)[:, None, None].expand(grid),
        _encode(rows, width)[:, None].expand(grid),
        _encode(columns, width).expand(grid),
    ]
    return torch.cat(parts, dim=3)[..., :dim].reshape(frames * rows * columns, dim).float()


def _encode(side: int, dim: int) -> Tensor:
    """float64 `[side, dim]`, sines and then cosines."""
    half = dim // 2
    frequency = WAVELENGTH_BASE ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(torch.arange(side, dtype=torch.float64), frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def resample(table: Tensor, sides: tuple[int, int], new_sides: tuple[int, int]) -> Tensor:
    """A learned table `[rows * columns, D]` for another grid: bicubic with antialiasing, as timm does it."""
    if sides == new_sides:
        return table
    image = table.float().unflatten(0, sides).permute(2, 0, 1)[None]
    image = F.interpolate(image, size=new_sides, mode="bicubic", antialias=True)
    return image[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)
