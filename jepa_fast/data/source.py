"""Where samples come from: pictures or clips by number, with labels and splits where the source has them."""

import hashlib
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("jepa_fast.data")

SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}
UNLABELLED = -1


class Source(ABC):
    """Samples by number. What cannot be read is left out, counted and reported, never an end of the run.

    root: what error messages name. labels: int64 `[len]` into `classes`, -1 where there is none; None without labels.
    splits: int64 `[len]`, 0 train, 1 val, 2 test; None where the source does not say.
    groups: int64 `[len]`, 0 to len - 1: samples of one group belong into the same split; None where each stands alone.
    """

    root: Path
    classes: tuple[str, ...] = ()
    labels: Tensor | None = None
    splits: Tensor | None = None
    groups: Tensor | None = None

    def __init__(self, root: Path, length: int, skipped: Iterable[tuple[Path, str]] = ()) -> None:
        self.root = root
        self._length = length
        self._skipped = list(skipped)
        # In shared memory, where the processes of a data loader report what failed.
        self.failed = torch.zeros(length, dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return self._length

    @abstractmethod
    def read(self, index: int, rng: random.Random | None = None) -> np.ndarray:
        """Sample `index` as uint8 `[T, height, width, 3]`, RGB; T is 1 for pictures.

        rng: where the source itself is random (which frames of a video); None takes the first.
        Raises UnreadableError when it cannot be decoded.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Where sample `index` comes from."""

    def report_failure(self, index: int, reason: Exception | str) -> None:
        """From now on sample `index` is left out."""
        if not self.failed[index]:
            self.failed[index] = 1
            logger.warning("skipped %s: %s", self.root / self.name(index), reason)

    @property
    def skipped(self) -> list[tuple[Path, str]]:
        """What could not be read, with the reason, including what data loader processes ran into."""
        later = [
            (self.root / self.name(index), "failed when it was loaded; see the warning")
            for index in self.failed.nonzero().flatten().tolist()
        ]
        return self._skipped + later

    @property
    def fingerprint(self) -> str:
        """A digest of the samples' names and order: two runs see the same data only if it is equal."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(f"{self.name(index)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def numbered(values: Sequence[int]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels int64 and classes: of the values that occur, in their order; negative ones are no label.

    Not of all up to the largest: a single wrong value must not make millions of classes.
    """
    occurring = sorted({value for value in values if value >= 0})
    number = {value: i for i, value in enumerate(occurring)}
    labels = torch.tensor([number.get(value, UNLABELLED) for value in values], dtype=torch.int64)
    return labels, tuple(map(str, occurring))


def labels_of_folders(names: Sequence[str]) -> tuple[tuple[str, ...], Tensor | None, Tensor | None]:
    """Classes, labels and splits of relative paths like `class/x.jpg`, `train/class/x.jpg` or `x.jpg`.

    The innermost folder is the class; a first folder named train, val or test is the split. Paths without a folder of
    their own have no label; where none has one, labels are None.
    """
    folders = [name.split("/")[:-1] for name in names]
    splits = [SPLIT_FOLDERS.get(parts[0].lower()) if parts else None for parts in folders]
    has_splits = len(names) > 0 and all(split is not None for split in splits)
    if has_splits:
        folders = [parts[1:] for parts in folders]
    classes = tuple(sorted({parts[-1] for parts in folders if parts}))
    number = {name: i for i, name in enumerate(classes)}
    labels = [number[parts[-1]] if parts else UNLABELLED for parts in folders]
    return (
        classes,
        torch.tensor(labels, dtype=torch.int64) if classes else None,
        torch.tensor(splits, dtype=torch.int64) if has_splits else None,
    )
