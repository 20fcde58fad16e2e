"""Which samples make the batch of a training step, as a pure function of the step."""

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def stream_seed(seed: int, name: str, *position: int) -> int:
    """The 63-bit seed of the random stream `name` at `position` (an epoch, a sample, a step).

    Streams with different names or positions are independent, and none of them has a state to be
    saved: whatever draws from one is a pure function of (seed, name, position).
    """
    text = ":".join([str(seed), name, *map(str, position)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch's generators take a signed 64-bit seed


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, index)` keys for the training steps `start` to `stop` - 1.

    Every epoch is one fresh permutation of the samples; the incomplete last batch is dropped, as in
    the published I-JEPA training. Steps run on through epochs, so a data loader keeps its workers.

    Raises ValueError when `length` samples do not fill one batch.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int = 0, start: int = 0, stop: int = 0) -> None:
        if not 1 <= batch_size <= length:
            raise ValueError(f"batch_size: expected 1 to {length}, the number of samples, got {batch_size}")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop
        self._epoch = -1
        self._order: list[int] = []

    @property
    def steps_per_epoch(self) -> int:
        return self.length // self.batch_size

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The `batch_size` keys of training step `step`, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
            self._order = torch.randperm(self.length, generator=generator).tolist()
            self._epoch = epoch
        first = place * self.batch_size
        return [(epoch, index) for index in self._order[first : first + self.batch_size]]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.batch, range(self.start, self.stop))

    def __len__(self) -> int:
        return max(0, self.stop - self.start)
