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

ARROW_OF_TIME = "arrow_of_time"
CLIP_LABELS = ("file", ARROW_OF_TIME)
DIRECTIONS = ("forward", "backward")


class ClipSource(Source):
    """`frames` consecutive frames of a video (of every stride-th that it was opened with) as one sample.

    A video has as many samples as it holds such clips side by side. With a random generator a clip starts anywhere in
    its video, without one where the clips side by side do. Videos that are too short are skipped.
    The class is the folder of the video; where all lie in one folder, or label is "file", it is the video itself. With
    the label "arrow_of_time" every clip is there twice, as it was filmed (class 0) and backward (class 1).
    Raises ValueError for another label, or videos that are all too short.
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
        if label not in (None, *CLIP_LABELS):
            raise ValueError(
                f"label: expected {' or '.join(CLIP_LABELS)} for the clips in {root}, got {label}"
            )
        short = [
            (video.path, f"{len(video)} frames, fewer than the {frames} of a clip")
            for video in videos
            if len(video) < frames
        ]
        self.videos = [video for video in videos if len(video) >= frames]
        self.frames = frames
        self._ends = list(accumulate((len(video) // frames for video in self.videos), initial=0))
        self._ways = 2 if label == ARROW_OF_TIME else 1
        super().__init__(root, self._ends[-1] * self._ways, [*skipped, *short])
        if not self.videos:
            raise ValueError(f"frames: none of the {len(videos)} videos in {root} has {frames} frames")
        names = [video.path.relative_to(root).as_posix() for video in self.videos]
        classes, numbers, splits = labels_of_folders(names)
        if label == "file" or len({name.rpartition("/")[0] for name in names}) == 1:
            classes, numbers, splits = tuple(names), torch.arange(len(names)), None
        counts = torch.tensor([len(video) // frames for video in self.videos]) * self._ways
        self.classes = classes
        self.labels = None if numbers is None else numbers.repeat_interleave(counts)
        self.splits = None if splits is None else splits.repeat_interleave(counts)
        if label == ARROW_OF_TIME:
            number = torch.arange(len(self))
            self.classes, self.labels, self.groups = DIRECTIONS, number % 2, number // 2

    def read(self, index: int, rng: random.Random | None = None) -> np.ndarray:
        clip, backward = divmod(index, self._ways)
        place = bisect.bisect_right(self._ends, clip) - 1
        video = self.videos[place]
        start = (clip - self._ends[place]) * self.frames
        if rng is not None:
            start = rng.randrange(len(video) - self.frames + 1)
        frames = np.stack([video.frame(number) for number in range(start, start + self.frames)])
        return frames[::-1] if backward else frames

    def name(self, index: int) -> str:
        clip, backward = divmod(index, self._ways)
        place = bisect.bisect_right(self._ends, clip) - 1
        path = self.videos[place].path.relative_to(self.root).as_posix()
        return f"{path} clip {clip - self._ends[place]}{' backward' if backward else ''}"
