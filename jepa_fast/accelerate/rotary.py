"""Rotary positions of token ids, made once for all layers that share them."""

import functools

import torch
from torch import Tensor

from jepa_fast.kernels.rope.positions import Rope3D

from .shared import Shared

_kept: Shared[Rope3D] = Shared()


def of_ids(
    ids: Tensor,
    rows: int,
    columns: int,
    *,
    table: str,
    pairing: str = "tiled",
    scale: tuple[float, float] = (1, 1),
) -> Rope3D:
    """For tokens `ids`, int64 `[N]` or `[B, N]`, of frames of rows x columns tokens; scale: of row and column."""
    return _kept.get(
        ids,
        (rows, columns, table, pairing, scale),
        lambda: Rope3D(coordinates(ids, rows, columns, scale), pairing=pairing, table=table),
    )


def of_grid(
    count: int,
    rows: int,
    columns: int,
    device: torch.device,
    *,
    table: str,
    pairing: str = "tiled",
    scale: tuple[float, float] = (1, 1),
) -> Rope3D:
    """For tokens 0 .. count - 1, all samples alike."""
    make = _grid if torch.compiler.is_compiling() else _grid_kept
    return make(count, rows, columns, device, table, pairing, scale)


def _grid(
    count: int,
    rows: int,
    columns: int,
    device: torch.device,
    table: str,
    pairing: str,
    scale: tuple[float, float],
) -> Rope3D:
    ids = torch.arange(count, device=device)
    return Rope3D(coordinates(ids, rows, columns, scale), pairing=pairing, table=table)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _grid_kept(*arguments: object) -> Rope3D:
    return _grid(*arguments)  # type: ignore[arg-type]


def coordinates(ids: Tensor, rows: int, columns: int, scale: tuple[float, float] = (1, 1)) -> Tensor:
    """(frame, row, column) `[..., 3]` of token ids, integers unless rows and columns are scaled."""
    frame = ids // (rows * columns)
    inside = ids - frame * (rows * columns)
    row, column = inside // columns, inside % columns
    if scale == (1, 1):
        return torch.stack([frame, row, column], dim=-1)
    return torch.stack([frame.float(), row * scale[0], column * scale[1]], dim=-1)
