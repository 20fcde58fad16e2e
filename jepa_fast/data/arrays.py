"""Encoded images in the arrays of an .npz file, with labels and splits."""

import contextlib
import io
import random
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jepa_fast.data.images import UnreadableError, read_image
from jepa_fast.data.source import SPLITS, UNLABELLED, Source, numbered

# Where an integer array gives the class, and where its names are, newline-separated UTF-8.
_NAMES_OF = {"label": "class_names", "coarse_label": "coarse_names"}
_LABELS = ("label", "coarse_label", "instruction")


class ArraySource(Source):
    """The images of an .npz file, none of whose arrays may be pickled.

    Images: uint8 `X_bytes` with int64 `X_offsets [n + 1]` (image i is bytes offsets[i] : offsets[i + 1]; `image_bytes`
    goes with `offsets`), for one or several X in the order of the file; or `images` uint8 `[n, H, W, 3]`.
    Labels: an integer array `label`, `coarse_label` or any other of one value per image; or a text array of lines, one
    per image or one per episode of equally many images. Names: `class_names`, `coarse_names`, strings or lines; without
    them the numbers that occur are the classes. Splits: an integer array `split`, 0, 1, 2.

    Raises ValueError, naming the file and the array, for one of these names that holds something else.

    label: the array that gives the labels; None takes the first there is.
    """

    def __init__(self, path: Path, *, label: str | None = None) -> None:
        arrays = _load(path)
        self.pictures = arrays.get("images")
        self._parts: list[tuple[str, np.ndarray, np.ndarray]] = []
        if self.pictures is None:
            self._parts = [
                (name, arrays[f"{name}_bytes"], arrays[offsets]) for name, offsets in _encoded(arrays)
            ]
            if not self._parts:
                raise ValueError(
                    f"data: expected image_bytes and offsets, or images, in {path}, got {', '.join(arrays)}"
                )
            self._parts = [
                (name, data, _checked_offsets(path, name, data, offsets))
                for name, data, offsets in self._parts
            ]
        elif (
            self.pictures.ndim != 4
            or self.pictures.shape[3] != 3
            or self.pictures.dtype != np.uint8
            or not self.pictures.size
        ):
            raise _unexpected(path, "images uint8 [n, H, W, 3] with all of them 1 or more", self.pictures)
        self._ends = np.cumsum([len(offsets) - 1 for _, _, offsets in self._parts])
        super().__init__(path, len(self.pictures) if self.pictures is not None else int(self._ends[-1]))
        self._set_labels(arrays, label)
        self._check_headers()

    def read(self, index: int, rng: random.Random | None = None) -> np.ndarray:
        if self.pictures is not None:
            return self.pictures[index][None]
        return np.asarray(read_image(io.BytesIO(self._bytes(index))))[None]

    def name(self, index: int) -> str:
        if self.pictures is not None:
            return f"images[{index}]"
        part, place = self._locate(index)
        return f"{self._parts[part][0]}[{place}]"

    def _bytes(self, index: int) -> bytes:
        part, place = self._locate(index)
        _, data, offsets = self._parts[part]
        return data[offsets[place] : offsets[place + 1]].tobytes()

    def _locate(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - (int(self._ends[part - 1]) if part else 0)

    def _check_headers(self) -> None:
        """What is no image is found before the run; damage inside of one, when it is loaded."""
        if self.pictures is not None:
            return
        reason: Exception | None = None
        for index in range(len(self)):
            try:
                read_image(io.BytesIO(self._bytes(index)), decode=False)
            except UnreadableError as error:
                reason = error
                self.report_failure(index, error)
        if len(self) and self.failed.all():
            raise ValueError(f"data: none of the {len(self)} images in {self.root} can be read: {reason}")

    def _set_labels(self, arrays: dict[str, np.ndarray], label: str | None) -> None:
        number = len(self)
        state = arrays.get("state")
        episode = None if state is None or state.ndim < 2 else state.shape[:2]
        found = {
            name: value
            for name, array in arrays.items()
            if name != "split" and (value := _labels(array, number, episode, declared=name in _NAMES_OF))
        }
        for name in _NAMES_OF:
            if name in arrays and name not in found:
                raise _unexpected(
                    self.root, f"{name} integers [{number}], {UNLABELLED} or more", arrays[name]
                )
        if label is None:
            label = next((name for name in _LABELS if name in found), None)
        elif label not in found:
            choice = ", ".join(sorted(found)) or "none"
            raise ValueError(f"label: expected one of the labels in {self.root} ({choice}), got {label}")
        if label is not None:
            self.labels, self.classes = found[label]
            names = _NAMES_OF.get(label)
            if names in arrays and arrays[label].shape == (number,):  # numbers, not text
                self.labels = torch.from_numpy(arrays[label].astype(np.int64))
                self.classes = _class_names(self.root, names, arrays[names], int(arrays[label].max()) + 1)
        splits = arrays.get("split")
        if splits is not None:
            if (
                splits.dtype.kind not in "iu"
                or splits.shape != (number,)
                or not np.isin(splits, range(len(SPLITS))).all()
            ):
                raise _unexpected(self.root, f"split integers [{number}] from 0 to 2", splits)
            self.splits = torch.from_numpy(splits.astype(np.int64))


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("a single array, of an .npy file")
        with loaded as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (
        OSError, ValueError, EOFError, AttributeError, RuntimeError, zipfile.BadZipFile, zlib.error
    ) as error:  # fmt: skip
        raise ValueError(f"data: {path} is no .npz file of plain arrays: {error}") from error


def _unexpected(path: Path, expected: str, array: np.ndarray) -> ValueError:
    got = f"{array.dtype} {list(array.shape)}"
    if array.dtype.kind in "iu" and array.size:
        got += f" from {array.min()} to {array.max()}"
    return ValueError(f"data: expected {expected} in {path}, got {got}")


def _checked_offsets(path: Path, name: str, data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int64."""
    if data.dtype != np.uint8 or data.ndim != 1:
        raise _unexpected(path, f"{name}_bytes uint8 [bytes]", data)
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or offsets.size < 2:
        raise _unexpected(path, f"the offsets of {name}_bytes as integers [n + 1]", offsets)
    offsets = offsets.astype(np.int64)
    if offsets[0] < 0 or (np.diff(offsets) < 0).any() or offsets[-1] > data.size:
        raise ValueError(f"data: the offsets of {name}_bytes in {path} do not fit its {data.size} bytes")
    return offsets


def _class_names(path: Path, name: str, array: np.ndarray, number: int) -> tuple[str, ...]:
    """At least `number` of them."""
    names: list[str] = []
    if array.ndim == 1 and array.dtype.kind == "U":
        names = array.tolist()
    elif array.ndim == 1 and array.dtype == np.uint8:
        with contextlib.suppress(UnicodeDecodeError):
            names = array.tobytes().decode().removesuffix("\n").split("\n")
    if not names:
        raise _unexpected(path, f"{name} strings [classes], or lines of UTF-8 as uint8 [bytes]", array)
    if len(names) < number:
        raise ValueError(f"data: expected {number} or more {name} in {path}, as its labels, got {len(names)}")
    return tuple(names)


def _encoded(arrays: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """Names of the arrays of encoded images and of their offsets; icons and such are only taken if alone."""
    pairs = []
    for key in arrays:
        if key.endswith("_bytes"):
            name = key.removesuffix("_bytes")
            offsets = (
                f"{name}_offsets" if f"{name}_offsets" in arrays else "offsets" if name == "image" else ""
            )
            if offsets in arrays:
                pairs.append((name, offsets))
    images = [pair for pair in pairs if pair[0].startswith("image")]
    return images or pairs


def _labels(
    values: np.ndarray, number: int, episodes: tuple[int, int] | None, *, declared: bool
) -> tuple[Tensor, tuple[str, ...]] | None:
    """Labels and class names that an array gives to so many images; None if it is of another kind.

    episodes: how many, and frames in each; they follow each other, with several cameras camera by camera.
    declared: its name says that it holds labels, so that large numbers are labels, too.
    """
    if values.dtype == np.uint8 and values.ndim == 1 and values.size != number:
        try:
            lines = values.tobytes().decode().split("\n")
        except UnicodeDecodeError:
            return None
        classes = tuple(sorted(set(lines)))
        if len(classes) == len(lines):  # names of something else, or a label for each image alone
            return None
        frames = episodes[1] if episodes and episodes[0] == len(lines) else 1
        if number % (frames * len(lines)) or (frames == 1 and number != len(lines)):
            return None
        place = {name: i for i, name in enumerate(classes)}
        once = np.repeat([place[line] for line in lines], frames)
        return torch.from_numpy(np.tile(once, number // len(once))), classes
    if values.dtype.kind not in "iu" or values.shape != (number,) or values.min() < UNLABELLED:
        return None
    return numbered(values.tolist()) if declared or values.max() < number else None
