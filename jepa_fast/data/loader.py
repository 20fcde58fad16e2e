"""Batches by the number of the training step: decoded, with crops and masks drawn, ready for the device."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from jepa_fast.data.augment import View, central_view, least_edge, views
from jepa_fast.data.batches import EpochBatches, stream_seed
from jepa_fast.data.images import UnreadableError
from jepa_fast.data.source import Source


@dataclass
class RawBatch:
    """What a worker makes of a step.

    pixels: uint8 `[B, T, 3, H, W]`, pictures in the upper left corner. parameters: for each kind of view
    `[B, V, 10]`, see `augment.PARAMETERS`. masks: of the system, None without. indices: int64 `[B]` in the source.
    """

    pixels: Tensor
    parameters: list[Tensor]
    masks: Any
    indices: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "RawBatch":
        return RawBatch(
            function(self.pixels),
            [function(parameters) for parameters in self.parameters],
            map_tensors(self.masks, function),
            function(self.indices),
        )

    def pin_memory(self) -> "RawBatch":
        """Called by the data loader: from such memory a copy to the device is waited for by nobody."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> "RawBatch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, start: int, stop: int) -> "RawBatch":
        """Samples `start` to `stop` - 1 with their masks."""
        return RawBatch(
            self.pixels[start:stop],
            [parameters[start:stop] for parameters in self.parameters],
            rows_of_masks(self.masks, len(self), start, stop),
            self.indices[start:stop],
        )

    def views(self, kinds: Sequence[View]) -> list[Tensor]:
        """float32 `[B, V, T, 3, size, size]` for each kind, normalised, where the batch is."""
        return [
            views(self.pixels, parameters, kind.size, recolour=kind.recolours)
            for kind, parameters in zip(kinds, self.parameters, strict=True)
        ]


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in its (named) tuples replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        parts = [map_tensors(part, function) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def rows_of_masks(masks: Any, batch: int, start: int, stop: int) -> Any:
    """The masks of samples `start` to `stop` - 1 of a batch; rows are mask-major, cut or ragged.

    Ragged ones keep the counts of the whole batch, by which a step weighs their loss; `batch` may be a part itself.
    """
    if isinstance(masks, Tensor):
        return masks.unflatten(0, (-1, batch))[:, start:stop].flatten(0, 1)
    if hasattr(masks, "lengths"):
        starts = [0, *accumulate(masks.lengths)]
        number = stop - start
        ids, rows, lengths = [], [], ()
        # The rows of a mask for these samples lie together: their lengths, on the host, say where.
        for mask, first in enumerate(range(start, len(masks.lengths), batch)):
            tokens = slice(starts[first], starts[first + number])
            ids.append(masks.ids[tokens])
            rows.append(masks.rows[tokens] - first + mask * number)
            lengths += masks.lengths[first : first + number]
        whole = masks.whole or (starts[-1], len(masks.lengths))
        return masks._replace(ids=torch.cat(ids), rows=torch.cat(rows), lengths=lengths, whole=whole)
    if isinstance(masks, tuple):
        parts = [rows_of_masks(part, batch, start, stop) for part in masks]
        return type(masks)(*parts) if hasattr(masks, "_fields") else type(masks)(parts)
    return masks


Sampler = Callable[[int, int, torch.Generator], Any]  # (batch size, step, generator) -> masks


class StepBatches(Dataset[RawBatch]):
    """`batches[step]` is the whole batch of a training step, a pure function of (seed, step).

    With several processes, each makes its own share of the same batch: `share` (first, last + 1) of its samples; masks
    are drawn for the whole batch, whose shortest row decides the length of all; ragged ones know its number of tokens.
    A sample that cannot be read is replaced by the next one that can, and reported to the source.

    sampler: draws the masks; None for systems without.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        kinds: Sequence[View],
        *,
        seed: int = 0,
        sampler: Sampler | None = None,
        share: tuple[int, int] | None = None,
        subset: Sequence[int] | None = None,
    ) -> None:
        self.source = source
        self.kinds = list(kinds)
        self.seed = seed
        self.sampler = sampler
        self.subset = list(range(len(source))) if subset is None else list(subset)
        self.order = EpochBatches(len(self.subset), batch_size, seed=seed)
        self.share = share or (0, batch_size)
        self._short_side = math.ceil(least_edge(self.kinds))

    def __getitem__(self, step: int) -> RawBatch:
        pictures, parameters, indices = [], [], []
        for epoch, place in self.order.batch(step)[slice(*self.share)]:
            rng = random.Random(stream_seed(self.seed, "crop", epoch, place))
            index, frames = self._read(place, rng)
            frames = shrink(frames, self._short_side)
            pictures.append(frames)
            indices.append(index)
            height, width = frames.shape[1:3]
            parameters.append([kind.draw((width, height), rng) for kind in self.kinds])
        masks = None
        if self.sampler is not None:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, "masks", step))
            whole = self.order.batch_size
            masks = rows_of_masks(self.sampler(whole, step, generator), whole, *self.share)
        return RawBatch(
            pad(pictures),
            [torch.tensor(drawn, dtype=torch.float32) for drawn in zip(*parameters, strict=True)],
            masks,
            torch.tensor(indices),
        )

    def __len__(self) -> int:
        return len(self.subset)

    def _read(self, place: int, rng: random.Random) -> tuple[int, np.ndarray]:
        for candidate in chain(range(place, len(self.subset)), range(place)):
            index = self.subset[candidate]
            if self.source.failed[index]:
                continue
            try:
                return index, self.source.read(index, rng)
            except UnreadableError as error:
                self.source.report_failure(index, error)
        raise RuntimeError(f"data: nothing in {self.source.root} can be read any more")


def shrink(frames: np.ndarray, short_side: int) -> np.ndarray:
    """uint8 `[T, H, W, 3]` scaled down to a short side; smaller pictures stay as they are."""
    height, width = frames.shape[1:3]
    factor = short_side / min(height, width)
    if factor >= 1:
        return frames
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    smaller = [
        np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
        for frame in frames
    ]
    return np.stack(smaller)


def pad(pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 `[T, h, w, 3]` arrays of different sizes -> `[B, T, 3, H, W]`, each in the upper left corner."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    whole = np.zeros((len(pictures), len(pictures[0]), 3, height, width), np.uint8)
    for row, picture in zip(whole, pictures, strict=True):
        row[:, :, : picture.shape[1], : picture.shape[2]] = picture.transpose(0, 3, 1, 2)
    return torch.from_numpy(whole)


class Labelled(Dataset[RawBatch | None]):
    """The samples `indices` of a source in their order, whole, in batches; what cannot be read is left out."""

    def __init__(self, source: Source, indices: Sequence[int], batch_size: int, short_side: int) -> None:
        self.source = source
        self.indices = list(indices)
        self.batch_size = batch_size
        self.short_side = short_side

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, number: int) -> RawBatch | None:
        pictures, parameters, indices = [], [], []
        for index in self.indices[number * self.batch_size : (number + 1) * self.batch_size]:
            if self.source.failed[index]:
                continue
            try:
                frames = shrink(self.source.read(index), self.short_side)
            except UnreadableError as error:
                self.source.report_failure(index, error)
                continue
            pictures.append(frames)
            indices.append(index)
            parameters.append([central_view((frames.shape[2], frames.shape[1]))])
        if not pictures:
            return None
        return RawBatch(
            pad(pictures), [torch.tensor(parameters, dtype=torch.float32)], None, torch.tensor(indices)
        )
