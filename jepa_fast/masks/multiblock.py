"""Multi-block masks of I-JEPA."""

import functools
import logging
import math
import operator
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

logger = logging.getLogger(__name__)

TRIES_PER_RELAXATION = 20
SIZE_CHECKS = 1024  # draws of the block sizes that the constructor tries

Size = tuple[int, int]  # rows and columns of a block


class Masks(NamedTuple):
    """Patch indices, int64; mask-major rows (row = mask * batch_size + sample), ascending within a row."""

    context: Tensor  # [num_context * B, Nc]
    target: Tensor  # [num_targets * B, Np]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Masks":
        return Masks(*(index.to(device, non_blocking=non_blocking) for index in self))


class MultiBlockMasks:
    """Samples the context and target blocks of I-JEPA (arXiv:2301.08243, section 3 and appendix A).

    One target block size and one context block size are drawn for a whole batch, from a generator that `step`
    seeds; a single uniform number decides both scale and aspect ratio of a block. Each image then draws the
    positions of its `num_targets` target blocks and `num_context` context blocks. A context block loses the
    patches of all targets of its image; if no more than `min_keep` remain in 20 draws, one target more, from the
    last one on, may overlap it. At the end every target row is cut to the shortest one of the batch, and every
    context row likewise: the lowest indices stay.

    By default the indices are those of the published sampler for the same seeds. That one draws positions with
    an exclusive upper end and keeps blocks smaller than the grid, so it never chooses the last row and the last
    column of patches. `fixed=True` corrects both: a block may span the grid and touch every edge.

    Args:
        grid_size: patches per side, or `(rows, columns)`.
        context_scale, target_scale: range of the share of the grid that a block covers, within (0, 1].
        aspect_ratio: range of height / width of a target block; context blocks are square.
        num_context, num_targets: blocks per image.
        min_keep: a row keeps more than so many patches before the cut.
        allow_overlap: context blocks keep the patches of the targets.
        fixed: the corrected range of sizes and positions.

    Raises:
        ValueError: an argument out of its range, or block sizes that leave no valid mask on this grid.
    """

    def __init__(
        self,
        grid_size: int | tuple[int, int],
        *,
        context_scale: tuple[float, float] = (0.85, 1.0),
        target_scale: tuple[float, float] = (0.15, 0.2),
        aspect_ratio: tuple[float, float] = (0.75, 1.5),
        num_context: int = 1,
        num_targets: int = 4,
        min_keep: int = 10,
        allow_overlap: bool = False,
        fixed: bool = False,
    ) -> None:
        self.rows, self.columns = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
        if min(self.rows, self.columns) < 1:
            raise ValueError(f"grid_size: expected at least 1 patch per side, got {grid_size}")
        _check_range("context_scale", context_scale, 1.0)
        _check_range("target_scale", target_scale, 1.0)
        _check_range("aspect_ratio", aspect_ratio, math.inf)
        for name, value, least in (
            ("num_context", num_context, 1),
            ("num_targets", num_targets, 1),
            ("min_keep", min_keep, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        self.context_scale = context_scale
        self.target_scale = target_scale
        self.aspect_ratio = aspect_ratio
        self.num_context = num_context
        self.num_targets = num_targets
        self.min_keep = min_keep
        self.allow_overlap = allow_overlap
        self.fixed = fixed
        for draw in range(SIZE_CHECKS):
            self._target_size(draw / SIZE_CHECKS)
            self._context_size(draw / SIZE_CHECKS)

    def sample(self, batch_size: int, step: int, generator: Generator | None = None) -> Masks:
        """Draws the masks of one batch.

        Args:
            batch_size: B.
            step: number of the batch, the seed of the block sizes. The published loader counts from 0.
            generator: source of the positions; None is the global generator of torch, as published.

        Returns:
            `Masks(context [num_context * B, Nc], target [num_targets * B, Np])`.

        Raises:
            ValueError: `batch_size` below 1, or a negative `step`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if step < 0:
            raise ValueError(f"step: expected at least 0, got {step}")
        size_generator = Generator().manual_seed(step)
        target_size = self._target_size(torch.rand(1, generator=size_generator).item())
        context_size = self._context_size(torch.rand(1, generator=size_generator).item())

        targets: list[list[int]] = []
        contexts: list[list[int]] = []
        for _ in range(batch_size):
            targets.append([self._place(target_size, generator) for _ in range(self.num_targets)])
            avoided = [] if self.allow_overlap else targets[-1]
            contexts.append(
                [self._place_outside(avoided, context_size, generator) for _ in range(self.num_context)]
            )
        return Masks(self._collate(contexts), self._collate(targets))

    def _target_size(self, draw: float) -> Size:
        return self._size("target_scale", draw, self.target_scale, self.aspect_ratio)

    def _context_size(self, draw: float) -> Size:
        return self._size("context_scale", draw, self.context_scale, (1.0, 1.0))

    def _size(
        self, name: str, draw: float, scale: tuple[float, float], aspect_ratio: tuple[float, float]
    ) -> Size:
        """Of a block, for a number in [0, 1)."""
        area = int(self.rows * self.columns * (scale[0] + draw * (scale[1] - scale[0])))
        ratio = aspect_ratio[0] + draw * (aspect_ratio[1] - aspect_ratio[0])
        spare = 0 if self.fixed else 1
        height = min(round(math.sqrt(area * ratio)), self.rows - spare)
        width = min(round(math.sqrt(area / ratio)), self.columns - spare)
        if height * width <= self.min_keep:
            raise ValueError(
                f"{name}: expected blocks of more than min_keep = {self.min_keep} patches, got {scale}, which makes "
                f"blocks of {height} x {width} on a grid of {self.rows} x {self.columns}"
            )
        return height, width

    # From here on a mask is a Python integer, whose bit number row * columns + column stands for that patch.

    def _place(self, size: Size, generator: Generator | None) -> int:
        height, width = size
        ends = (self.rows - height, self.columns - width)  # exclusive, as published
        top, left = (int(torch.randint(end + self.fixed, (1,), generator=generator)) for end in ends)
        return _rectangle(height, width, self.columns) << (top * self.columns + left)

    def _place_outside(self, targets: list[int], size: Size, generator: Generator | None) -> int:
        tries = 0
        while True:  # ends: with no target left to avoid, every block keeps more than min_keep
            relaxed = tries // TRIES_PER_RELAXATION
            if relaxed and tries % TRIES_PER_RELAXATION == 0:
                logger.warning("no context block is free of all targets: it may overlap the last %d", relaxed)
            avoided = functools.reduce(operator.or_, targets[: max(len(targets) - relaxed, 0)], 0)
            mask = self._place(size, generator) & ~avoided
            if mask.bit_count() > self.min_keep:
                return mask
            tries += 1

    def _collate(self, masks: list[list[int]]) -> Tensor:
        """[B][M] masks to their M * B rows of lowest indices, as many in each as the smallest mask has."""
        flat = [mask for masks_of_one_index in zip(*masks, strict=True) for mask in masks_of_one_index]
        num_bytes = -(-self.rows * self.columns // 8)
        packed = np.frombuffer(b"".join(mask.to_bytes(num_bytes, "little") for mask in flat), np.uint8)
        bits = np.unpackbits(packed.reshape(len(flat), num_bytes), axis=1, bitorder="little")
        length = int(bits.sum(axis=1).min())
        kept = bits & (bits.cumsum(axis=1) <= length)
        return torch.from_numpy(np.nonzero(kept)[1].reshape(len(flat), length))


@functools.lru_cache(maxsize=64)
def _rectangle(height: int, width: int, columns: int) -> int:
    """The mask of a block in the upper left corner of a grid with so many columns."""
    row = (1 << width) - 1
    return sum(row << i * columns for i in range(height))


def _check_range(name: str, limits: tuple[float, float], highest: float) -> None:
    low, high = limits
    if not 0 < low <= high <= highest:
        accepted = "0 < low <= high" + (f" <= {highest:g}" if highest < math.inf else "")
        raise ValueError(f"{name}: expected {accepted}, got {limits}")
