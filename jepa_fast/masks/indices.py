"""What mask samplers return: token indices, in rows cut to one length, or ragged rows one after another."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Masks(NamedTuple):
    """Patch indices, int64; mask-major rows (row = mask * batch_size + sample), ascending within a row."""

    context: Tensor  # [num_context * B, Nc]
    target: Tensor  # [num_targets * B, Np]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Masks":
        return Masks(*(index.to(device, non_blocking=non_blocking) for index in self))

    @property
    def token_counts(self) -> tuple[int, int]:
        """Of context and target, all rows together."""
        return self.context.numel(), self.target.numel()


class Ragged(NamedTuple):
    """Rows of different lengths, one after another.

    ids: int64 `[T]`, the patches of row 0, then those of row 1, ..., ascending within a row.
    rows: int64 `[T]`, the row of each. Row r is about sample r % B.
    lengths: of the rows, on the host.
    whole: tokens and rows of the whole batch; None if it is these.
    """

    ids: Tensor
    rows: Tensor
    lengths: tuple[int, ...]
    whole: tuple[int, int] | None = None

    @classmethod
    def of(cls, kept: np.ndarray) -> "Ragged":
        """kept: bool `[R, N]`."""
        rows, ids = np.nonzero(kept)
        return cls(torch.from_numpy(ids), torch.from_numpy(rows), tuple(kept.sum(axis=1).tolist()))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Ragged":
        ids, rows = (tensor.to(device, non_blocking=non_blocking) for tensor in self[:2])
        return self._replace(ids=ids, rows=rows)

    @property
    def weight(self) -> float:
        """Mean length of these rows over that of the rows of the whole batch.

        Times this, means over the tokens of equal parts of a batch average to the mean over all its tokens.
        """
        if self.whole is None:
            return 1.0
        tokens, rows = self.whole
        return sum(self.lengths) * rows / (len(self.lengths) * tokens)


class RaggedMasks(NamedTuple):
    """As `Masks`, with every token that the sampler chose: no row is cut."""

    context: Ragged
    target: Ragged

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "RaggedMasks":
        return RaggedMasks(*(part.to(device, non_blocking=non_blocking) for part in self))

    @property
    def token_counts(self) -> tuple[int, int]:
        """Of context and target, all rows together."""
        return len(self.context.ids), len(self.target.ids)


class MaskSets(tuple[Masks | RaggedMasks, ...]):
    """One `Masks` (or `RaggedMasks`) for each mask set of the V-JEPAs, about the same clips; B rows in each."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "MaskSets":
        return MaskSets(masks.to(device, non_blocking) for masks in self)

    @property
    def token_counts(self) -> tuple[int, int]:
        """Of context and target, all sets together."""
        counts = [masks.token_counts for masks in self]
        return sum(context for context, _ in counts), sum(target for _, target in counts)


def cut(kept: np.ndarray, length: int | None = None) -> Tensor:
    """bool `[R, N]` -> int64 `[R, K]`: the lowest indices of each row, as many as the shortest row has.

    length: at most so many.
    """
    counts = kept.sum(axis=1)
    shortest = int(counts.min()) if length is None else min(int(counts.min()), length)
    ids = np.nonzero(kept)[1]
    starts = np.cumsum(counts) - counts
    return torch.from_numpy(ids[starts[:, None] + np.arange(shortest)])
