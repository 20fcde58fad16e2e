"""What patches are cut from, and how their pixels are normalised."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BYTE = 255.0


class Grid(NamedTuple):
    """Patches of tubelet x height x width pixels, frames x rows x columns of them in each sample."""

    tubelet: int
    height: int
    width: int
    frames: int
    rows: int
    columns: int

    @classmethod
    def of(cls, pixels: Tensor, patch_size: Sequence[int]) -> "Grid":
        """Of pixels `[B, C, T, H, W]`."""
        counts = (size // own for size, own in zip(pixels.shape[2:], patch_size, strict=True))
        return cls(*patch_size, *counts)

    @property
    def length(self) -> int:
        return self.frames * self.rows * self.columns

    @property
    def patch_size(self) -> tuple[int, int, int]:
        return self[:3]


class Source(NamedTuple):
    """pixels: `[B, C, T, H, W]` with their grid, or rows `[B, N, C * t * h * w]` that `patchify` made, without one.
    scale, shift: float32 `[C]`, what is multiplied and added as pixels are read; None leaves them as they are."""

    pixels: Tensor
    grid: Grid | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None

    @property
    def length(self) -> int:
        """N, the patches of a sample."""
        return self.pixels.shape[1] if self.grid is None else self.grid.length


def source_of(
    pixels: Tensor, patch_size: Sequence[int], mean: Sequence[float] | None, std: Sequence[float] | None
) -> Source:
    """Of images, videos or rows as the public functions take them; patch_size: the last two or three sizes of a
    weight."""
    if pixels.ndim == 3:
        return Source(pixels)
    if pixels.ndim == 4:
        pixels, patch_size = pixels.unsqueeze(2), (1, *patch_size)
    if pixels.stride(4) != 1 and pixels.shape[4] != 1:
        pixels = pixels.contiguous()
    grid = Grid.of(pixels, patch_size)
    if pixels.dtype != torch.uint8 and mean is None and std is None:
        return Source(pixels, grid)
    channels = pixels.shape[1]
    means = (0.0,) * channels if mean is None else tuple(mean)
    stds = (1.0,) * channels if std is None else tuple(std)
    return Source(pixels, grid, *_affine(means, stds, pixels.dtype == torch.uint8, pixels.device))


@functools.lru_cache(maxsize=64)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], bytes_: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Kept, as making them on a device would stop its stream. In the reference's float64 they are rounded once, too."""
    unit = BYTE if bytes_ else 1.0
    scale = [1.0 / (unit * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    with torch.inference_mode(False):
        return torch.tensor(scale, device=device), torch.tensor(shift, device=device)


def unpatchify(rows: Tensor, grid: Grid, channels: int) -> Tensor:
    """Rows `[B, N, C * t * h * w]` back to pixels `[B, C, T, H, W]`, in one copy."""
    by_place = rows.unflatten(1, (grid.frames, grid.rows, grid.columns))
    by_place = by_place.unflatten(4, (channels, *grid.patch_size))
    pixels = by_place.permute(0, 4, 1, 5, 2, 6, 3, 7)
    return pixels.flatten(6, 7).flatten(4, 5).flatten(2, 3)
