"""Multi-block tube masks of the V-JEPAs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator

from .draws import LARGEST_DRAW, integers
from .indices import Masks, MaskSets, Ragged, RaggedMasks, cut
from .multiblock import check_range, is_grid

MOST_ATTEMPTS = 1000  # at a context that is not empty, for each sample


@dataclass(frozen=True)
class TubeSet:
    """One mask set: the targets are the union of `num_blocks` blocks, the context is the rest of the clip.

    spatial_scale, temporal_scale: ranges of the share of a frame's patches, and of the frames, that a block covers.
    aspect_ratio: range of height / width of a block.
    max_temporal_keep: share of the frames, from the first on, that the context may have; the others are targets.
    max_keep: at most so many context tokens, None for all.

    Raises:
        ValueError: an argument out of its range.
    """

    num_blocks: int
    spatial_scale: tuple[float, float]
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    max_temporal_keep: float = 1.0
    max_keep: int | None = None

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks: expected at least 1, got {self.num_blocks}")
        check_range("spatial_scale", self.spatial_scale, 1.0)
        check_range("temporal_scale", self.temporal_scale, 1.0)
        check_range("aspect_ratio", self.aspect_ratio, math.inf)
        if not 0 < self.max_temporal_keep <= 1:
            raise ValueError(f"max_temporal_keep: expected 0 < share <= 1, got {self.max_temporal_keep}")
        if self.max_keep is not None and self.max_keep < 1:
            raise ValueError(f"max_keep: expected at least 1, got {self.max_keep}")


SHORT_RANGE = TubeSet(num_blocks=8, spatial_scale=(0.15, 0.15))
LONG_RANGE = TubeSet(num_blocks=2, spatial_scale=(0.7, 0.7))
PUBLISHED_SETS = (SHORT_RANGE, LONG_RANGE)
"""Of V-JEPA (arXiv:2404.08471, section 3.2) and of the videos of V-JEPA 2 and 2.1."""
IMAGE_SETS = (TubeSet(num_blocks=10, spatial_scale=(0.15, 0.15)),)
"""Of the images of V-JEPA 2.1."""


class TubeMasks:
    """Samples the mask sets of V-JEPA (arXiv:2404.08471) and its successors.

    For each set one block size is drawn for a whole batch, from a generator that `step` seeds: frames, area and aspect
    ratio by a number each. Every sample then draws the positions of its blocks; one whose context is empty draws
    anew. By default every row of a set is cut to the shortest one of the batch, context and target each, as published:
    the lowest indices stay, so the last frames lose tokens. `ragged=True` keeps all of them.

    Indices are those of the published sampler for the same seeds, however many samples are drawn at once.

    Args:
        grid_size: patches of a clip, `(frames, rows, columns)`.
        sets: the mask sets, sampled one after the other.
        ragged: return rows of different lengths; False cuts them to the shortest one of the batch, as published.

    Raises:
        ValueError: an argument out of its range, or blocks without a patch on this grid.
    """

    def __init__(
        self,
        grid_size: tuple[int, int, int],
        *,
        sets: Sequence[TubeSet] = PUBLISHED_SETS,
        ragged: bool = False,
    ) -> None:
        if not is_grid(grid_size, 3):
            raise ValueError(
                f"grid_size: expected (frames, rows, columns) of at least 1 each, got {grid_size}"
            )
        if not sets:
            raise ValueError("sets: expected at least one, got none")
        self.frames, self.rows, self.columns = grid_size
        self.sets = tuple(sets)
        self.ragged = ragged
        for tube_set in self.sets:
            # The smallest blocks are at the ends: the flattest, and the narrowest.
            self._block_size(tube_set, [0.0, 0.0, 0.0])
            self._block_size(tube_set, [0.0, 0.0, LARGEST_DRAW])

    def sample(self, batch_size: int, step: int, generator: Generator | None = None) -> MaskSets:
        """Draws the masks of one batch.

        Args:
            batch_size: B.
            step: number of the batch, the seed of the block sizes. The published loader counts from 0.
            generator: source of the positions; None is the global generator of torch, as published.

        Returns:
            For each set `Masks(context [B, Nc], target [B, Np])`, or `RaggedMasks` of B rows.

        Raises:
            ValueError: `batch_size` below 1, or a negative `step`.
            RuntimeError: blocks so large that no context was left in 1000 attempts for each sample.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if step < 0:
            raise ValueError(f"step: expected at least 0, got {step}")
        return MaskSets(self._collate(s, self._sample_set(s, batch_size, step, generator)) for s in self.sets)

    def _sample_set(
        self, tube_set: TubeSet, batch_size: int, step: int, generator: Generator | None
    ) -> np.ndarray:
        """bool [B, frames * rows * columns], True for targets."""
        size_generator = Generator().manual_seed(step)
        size = self._block_size(tube_set, torch.rand(3, generator=size_generator).tolist())
        found: list[np.ndarray] = []
        missing = batch_size
        for _ in range(MOST_ATTEMPTS):
            # A sample that has to draw again does so before the next one draws: rejected attempts leave no gap.
            attempts = self._attempts(tube_set, size, missing, generator)
            good = attempts[~attempts.all(axis=1)]
            found.append(good)
            missing -= len(good)
            if not missing:
                return np.concatenate(found) if len(found) > 1 else found[0]
        raise RuntimeError(f"sets: {MOST_ATTEMPTS} attempts with {tube_set} left no context")

    def _attempts(
        self, tube_set: TubeSet, size: tuple[int, int, int], count: int, generator: Generator | None
    ) -> np.ndarray:
        """bool [count, frames * rows * columns], the unions of the blocks."""
        frames, height, width = size
        ends = [self.rows - height + 1, self.columns - width + 1, self.frames - frames + 1]
        drawn = integers(np.tile(ends, count * tube_set.num_blocks), generator)
        top, left, start = drawn.reshape(count, tube_set.num_blocks, 3).transpose(2, 0, 1)[..., None]
        in_rows = _span(top, height, self.rows)  # [count, blocks, rows]
        in_columns = _span(left, width, self.columns)
        if frames == self.frames:
            plane = np.zeros((count, self.rows, self.columns), dtype=bool)
            for block in range(tube_set.num_blocks):
                plane |= in_rows[:, block, :, None] & in_columns[:, block, None, :]
            clips = np.repeat(plane[:, None], self.frames, axis=1)
        else:
            in_frames = _span(start, frames, self.frames)
            clips = np.zeros((count, self.frames, self.rows, self.columns), dtype=bool)
            for block in range(tube_set.num_blocks):
                plane = in_rows[:, block, :, None] & in_columns[:, block, None, :]
                clips |= in_frames[:, block, :, None, None] & plane[:, None]
        clips[:, max(1, int(self.frames * tube_set.max_temporal_keep)) :] = True
        return clips.reshape(count, -1)

    def _block_size(self, tube_set: TubeSet, draws: Sequence[float]) -> tuple[int, int, int]:
        """Frames, rows and columns, for three numbers in [0, 1)."""

        def between(limits: tuple[float, float], draw: float) -> float:
            return limits[0] + draw * (limits[1] - limits[0])

        frames = max(1, int(self.frames * between(tube_set.temporal_scale, draws[0])))
        area = int(self.rows * self.columns * between(tube_set.spatial_scale, draws[1]))
        ratio = between(tube_set.aspect_ratio, draws[2])
        height = min(round(math.sqrt(area * ratio)), self.rows)
        width = min(round(math.sqrt(area / ratio)), self.columns)
        if height < 1 or width < 1:
            raise ValueError(
                f"spatial_scale: expected blocks of at least 1 patch, got {tube_set.spatial_scale}, which with "
                f"aspect_ratio = {tube_set.aspect_ratio} makes blocks of {height} x {width} on a grid of "
                f"{self.rows} x {self.columns}"
            )
        return frames, height, width

    def _collate(self, tube_set: TubeSet, target: np.ndarray) -> Masks | RaggedMasks:
        context = ~target
        if not self.ragged:
            return Masks(cut(context, tube_set.max_keep), cut(target))
        if tube_set.max_keep is not None:
            context &= context.cumsum(axis=1) <= tube_set.max_keep
        return RaggedMasks(Ragged.of(context), Ragged.of(target))


def _span(begin: np.ndarray, length: int, side: int) -> np.ndarray:
    """bool [..., side], True from `begin` on for `length` places; begin [..., 1]."""
    places = np.arange(side)
    return (places >= begin) & (places < begin + length)
