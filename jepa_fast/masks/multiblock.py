"""Multi-block masks of I-JEPA."""

import functools
import logging
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator

from .draws import LARGEST_DRAW, integers
from .indices import Masks, Ragged, RaggedMasks, cut

logger = logging.getLogger(__name__)

TRIES_PER_RELAXATION = 20
SIZE_CHECKS = 1024  # draws of the block sizes that the constructor tries

Size = tuple[int, int]  # rows and columns of a block


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
        ragged: return rows of different lengths; False cuts them to the shortest one of the batch, as published.

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
        ragged: bool = False,
    ) -> None:
        sides = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
        if not is_grid(sides, 2):
            raise ValueError(
                f"grid_size: expected an integer or (rows, columns), at least 1 patch per side, got {grid_size}"
            )
        self.rows, self.columns = sides
        check_range("context_scale", context_scale, 1.0)
        check_range("target_scale", target_scale, 1.0)
        check_range("aspect_ratio", aspect_ratio, math.inf)
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
        self.ragged = ragged
        for draw in (*(number / SIZE_CHECKS for number in range(SIZE_CHECKS)), LARGEST_DRAW):
            self._target_size(draw)
            self._context_size(draw)

    def sample(
        self, batch_size: int, step: int, generator: Generator | None = None
    ) -> Any:  # Masks, or RaggedMasks if the sampler is ragged
        """Draws the masks of one batch.

        Args:
            batch_size: B.
            step: number of the batch, the seed of the block sizes. The published loader counts from 0.
            generator: source of the positions; None is the global generator of torch, as published.

        Returns:
            `Masks(context [num_context * B, Nc], target [num_targets * B, Np])`, or `RaggedMasks` of so many rows.

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

        source = torch.default_generator if generator is None else generator
        before = source.get_state()
        drawn = self._sample_all(batch_size, target_size, context_size, source)
        if drawn is None:  # some context has to be drawn again, before the next image draws anything
            source.set_state(before)
            drawn = self._sample_one_by_one(batch_size, target_size, context_size, source)
        context, target = (kept.transpose(1, 0, 2).reshape(-1, kept.shape[2]) for kept in drawn)
        if self.ragged:
            return RaggedMasks(Ragged.of(context), Ragged.of(target))
        return Masks(cut(context), cut(target))

    def _sample_all(
        self, batch_size: int, target_size: Size, context_size: Size, generator: Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """bool [B, num_context, N] and [B, num_targets, N]; None if a context keeps too little."""
        ends = [end for size in self._sizes(target_size, context_size) for end in self._ends(size)]
        drawn = integers(np.tile(ends, batch_size), generator).reshape(batch_size, -1, 2)
        target = self._blocks(drawn[:, : self.num_targets], target_size)
        context = self._blocks(drawn[:, self.num_targets :], context_size)
        if not self.allow_overlap:
            context &= ~target.any(axis=1, keepdims=True)
            if int(context.sum(axis=2).min()) <= self.min_keep:
                return None
        return context, target

    def _sizes(self, target_size: Size, context_size: Size) -> list[Size]:
        """Of the blocks of an image in the order of their draws."""
        return [target_size] * self.num_targets + [context_size] * self.num_context

    def _blocks(self, corners: np.ndarray, size: Size) -> np.ndarray:
        """Corners [B, M, 2] to bool [B, M, N]."""
        spans = []
        for axis, (length, side) in enumerate(zip(size, (self.rows, self.columns), strict=True)):
            places, begin = np.arange(side), corners[..., axis, None]
            spans.append((places >= begin) & (places < begin + length))
        kept = spans[0][..., :, None] & spans[1][..., None, :]
        return kept.reshape(*corners.shape[:2], -1)

    def _sample_one_by_one(
        self, batch_size: int, target_size: Size, context_size: Size, generator: Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `_sample_all`, with as many draws of a context as it takes."""
        targets: list[list[int]] = []
        contexts: list[list[int]] = []
        for _ in range(batch_size):
            targets.append([self._place(target_size, generator) for _ in range(self.num_targets)])
            avoided = [] if self.allow_overlap else targets[-1]
            contexts.append(
                [self._place_outside(avoided, context_size, generator) for _ in range(self.num_context)]
            )
        return self._unpack(contexts), self._unpack(targets)

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

    def _ends(self, size: Size) -> tuple[int, int]:
        """Exclusive ends of the positions of a block; the published ones leave out the last."""
        return self.rows - size[0] + self.fixed, self.columns - size[1] + self.fixed

    # From here on a mask is a Python integer, whose bit number row * columns + column stands for that patch.

    def _place(self, size: Size, generator: Generator) -> int:
        height, width = size
        top, left = (int(torch.randint(end, (1,), generator=generator)) for end in self._ends(size))
        return _rectangle(height, width, self.columns) << (top * self.columns + left)

    def _place_outside(self, targets: list[int], size: Size, generator: Generator) -> int:
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

    def _unpack(self, masks: list[list[int]]) -> np.ndarray:
        """[B][M] masks to bool [B, M, N]."""
        num_patches = self.rows * self.columns
        num_bytes = -(-num_patches // 8)
        data = b"".join(mask.to_bytes(num_bytes, "little") for of_image in masks for mask in of_image)
        packed = np.frombuffer(data, np.uint8).reshape(len(masks), -1, num_bytes)
        return np.unpackbits(packed, axis=2, bitorder="little")[..., :num_patches].astype(bool)


@functools.lru_cache(maxsize=64)
def _rectangle(height: int, width: int, columns: int) -> int:
    """The mask of a block in the upper left corner of a grid with so many columns."""
    row = (1 << width) - 1
    return sum(row << i * columns for i in range(height))


def is_grid(sides: Any, axes: int) -> bool:
    """Whether these are so many sides of at least 1 patch."""
    return (
        isinstance(sides, Sequence)
        and len(sides) == axes
        and all(isinstance(s, int) and s >= 1 for s in sides)
    )


def check_range(name: str, limits: tuple[float, float], highest: float) -> None:
    """Raises ValueError unless limits are finite, and within (0, highest]."""
    pair = isinstance(limits, Sequence) and len(limits) == 2
    if not pair or not 0 < limits[0] <= limits[1] <= highest or limits[1] == math.inf:
        accepted = "0 < low <= high" + (f" <= {highest:g}" if highest < math.inf else ", both finite")
        raise ValueError(f"{name}: expected {accepted}, got {limits}")
