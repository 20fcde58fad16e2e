"""Clips of several frames out of videos."""

import bisect
import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from jepa_fast.data.source import Source, labels_of_folders

if TYPE_CHECKING:
    from jepa_fast.data.videos import Video


class ClipSource(Source):
    """`frames` consecutive frames of a video (of every stride-th that it was opened with) as one sample.

    A video has as many samples as it holds such clips side by side. With a random generator a clip starts anywhere in
    its video, without one where the clips side by side do. Videos that are too short are skipped.
    The class is the folder of the video; where all lie in one folder, or label is "file", it is the video itself.
    """

    def __init__(
        self,
        root: Path,
        videos: Sequence["Video"],
        frames: int,
        *,
        label: str | None = None,
        skipped: Sequence[tuple[Path, str]] = (),
    ) -> None:
        short = [
            (video.path, f"{len(video)} frames, fewer than the {frames} of a clip")
            for video in videos
            if len(video) < frames
        ]
        self.videos = [video for video in videos if len(video) >= frames]
        self.frames = frames
        self._ends = list(accumulate((len(video) // frames for video in self.videos), initial=0))
        super().__init__(root, self._ends[-1], [*skipped, *short])
        if not self.videos:
            raise ValueError(f"frames: none of the {len(videos)} videos in {root} has {frames} frames")
        names = [video.path.relative_to(root).as_posix() for video in self.videos]
        if label == "file" or len({name.rpartition("/")[0] for name in names}) == 1:
            classes, numbers, splits = tuple(names), torch.arange(len(names)), None
        else:
            classes, by_folder, splits = labels_of_folders(names)
            assert by_folder is not None
            numbers = by_folder
        counts = torch.tensor([len(video) // frames for video in self.videos])
        self.classes, self.labels = classes, numbers.repeat_interleave(counts)
        self.splits = None if splits is None else splits.repeat_interleave(counts)

    def read(self, index: int, rng: random.Random | None = None) -> np.ndarray:
        place = bisect.bisect_right(self._ends, index) - 1
        video = self.videos[place]
        start = (index - self._ends[place]) * self.frames
        if rng is not None:
            start = rng.randrange(len(video) - self.frames + 1)
        return np.stack([video.frame(number) for number in range(start, start + self.frames)])

    def name(self, index: int) -> str:
        place = bisect.bisect_right(self._ends, index) - 1
        path = self.videos[place].path.relative_to(self.root).as_posix()
        return f"{path} clip {index - self._ends[place]}"
