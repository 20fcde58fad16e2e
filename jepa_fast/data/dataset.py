"""Images and video frames of a folder, whole or as random crops."""

import bisect
import hashlib
import random
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from jepa_fast.data.batches import stream_seed
from jepa_fast.data.crops import random_crop_box, resized_crop
from jepa_fast.data.images import UnreadableError, read_image
from jepa_fast.data.source import Source, labels_of_folders

if TYPE_CHECKING:
    from jepa_fast.data.videos import Video


class CropDataset(Source, Dataset[Tensor]):
    """One random crop per image and per video frame: uint8 `[3, image_size, image_size]`, RGB.

    `dataset[epoch, index]` is a pure function of (seed, epoch, index), whichever process asks and in
    whichever order; `dataset[index]` is that of epoch 0. The images come first, then the videos,
    each by path.

    A file that turns out to be unreadable is left out with a warning and listed in `skipped`; a
    sample that fails only later, when it is loaded, is replaced by the next one that can be read.

    Made by `open_folder`.
    """

    def __init__(
        self,
        root: Path,
        images: Sequence[Path],
        videos: Sequence["Video"],
        *,
        image_size: int,
        seed: int = 0,
        scale: tuple[float, float] = (0.3, 1.0),
        aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        skipped: Iterable[tuple[Path, str]] = (),
    ) -> None:
        self.images = list(images)
        self.videos = list(videos)
        self.image_size = image_size
        self.seed = seed
        self.scale = scale
        self.aspect_ratio = aspect_ratio
        self._ends = list(accumulate(map(len, self.videos), initial=len(self.images)))
        super().__init__(root, self._ends[-1], skipped)
        # The frames of a video are labelled as the video is.
        paths = [(image, 1) for image in self.images] + [(video.path, len(video)) for video in self.videos]
        names = [_relative(path, root) for path, number in paths for _ in range(number)]
        self.classes, self.labels, self.splits = labels_of_folders(names)

    def __getitem__(self, key: int | tuple[int, int]) -> Tensor:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        rng = random.Random(stream_seed(self.seed, "crop", epoch, index))
        for candidate in chain(range(index, len(self)), range(index)):
            if self.failed[candidate]:
                continue
            try:
                image = self.image(candidate)
            except UnreadableError as error:
                self.report_failure(candidate, error)
                continue
            box = random_crop_box(image.size, rng, scale=self.scale, aspect_ratio=self.aspect_ratio)
            return resized_crop(image, box, self.image_size)
        raise RuntimeError(f"data: nothing in {self.root} can be read any more")

    def read(self, index: int, rng: random.Random | None = None) -> np.ndarray:
        return np.asarray(self.image(index))[None]

    def image(self, index: int) -> Image.Image:
        """The whole RGB picture that sample `index` is cropped from.

        Raises UnreadableError when it cannot be decoded.
        """
        if index < len(self.images):
            return read_image(self.images[index])
        video, number = self._locate(index)
        return Image.fromarray(video.frame(number))

    def name(self, index: int) -> str:
        """Where sample `index` comes from: a path relative to the folder, for a video with the frame."""
        if index < len(self.images):
            return _relative(self.images[index], self.root)
        video, number = self._locate(index)
        return f"{_relative(video.path, self.root)} frame {number}"

    @property
    def fingerprint(self) -> str:
        """A digest of the samples' names and order: two runs see the same data only if it is equal."""
        digest = hashlib.sha256()
        for path in self.images:
            digest.update(f"{_relative(path, self.root)}\n".encode(errors="surrogateescape"))
        for video in self.videos:
            line = f"{_relative(video.path, self.root)} {video.timestamps}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _locate(self, index: int) -> tuple["Video", int]:
        place = bisect.bisect_right(self._ends, index)
        return self.videos[place - 1], index - self._ends[place - 1]


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
