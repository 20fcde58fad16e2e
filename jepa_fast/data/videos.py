"""Frames of a video file by their number, decoded once into memory or one at a time by seeking."""

import bisect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

from jepa_fast.data.images import UnreadableError
from jepa_fast.data.tars import Member


@dataclass(eq=False)
class Video:
    """Every `stride`-th frame of one file, scaled down to a given short side.

    `timestamps` are those of the frames, ascending, and `keyframes` those a decoder can start from,
    both in the stream's own unit. `size` is (height, width) of a frame as it comes out of `frame`.
    """

    file: Path | Member
    timestamps: list[int]
    keyframes: list[int]
    size: tuple[int, int]
    _decoded: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.timestamps)

    @property
    def path(self) -> Path:
        return self.file if isinstance(self.file, Path) else self.file.path

    @property
    def decoded_bytes(self) -> int:
        """What `decode_all` will hold in memory."""
        return len(self) * self.size[0] * self.size[1] * 3

    def frame(self, number: int) -> np.ndarray:
        """Frame `number` as uint8 `[height, width, 3]`; the same values from memory and from the file.

        Raises UnreadableError when the frame cannot be decoded.
        """
        if self._decoded is not None:
            return self._decoded[number].numpy()
        target = self.timestamps[number]
        with _open(self.file) as container:
            # A keyframe may turn out to be no clean start (an open group of pictures, an index that
            # sorts by decoding time), so every earlier one is tried, and last the start of the file.
            first = bisect.bisect_right(self.keyframes, target)
            for keyframe in [*reversed(self.keyframes[:first]), container.streams.video[0].start_time or 0]:
                container.seek(keyframe, stream=container.streams.video[0])
                for timestamp, frame in _frames(container):
                    if timestamp == target:
                        return self._pixels(frame, VideoReformatter())
                    if timestamp > target:
                        break
        raise UnreadableError("cannot be decoded")

    def decode_all(self, advance: Callable[[], None]) -> int:
        """Decodes the file into memory, calling `advance` after each frame.

        Frames that cannot be decoded are dropped; returns how many. Raises UnreadableError when the
        file cannot be read on.
        """
        # A tensor, which data loader processes share; filled as an array, without torch's threads.
        frames = torch.empty((len(self), *self.size, 3), dtype=torch.uint8)
        array = frames.numpy()
        wanted = {timestamp: number for number, timestamp in enumerate(self.timestamps)}
        found = []
        reformatter = VideoReformatter()
        with _open(self.file) as container:
            container.streams.video[0].thread_type = "AUTO"
            for timestamp, frame in _frames(container):
                number = wanted.pop(timestamp, None)
                if number is not None:
                    array[number] = self._pixels(frame, reformatter)
                    found.append(number)
                    advance()
        found.sort()
        missing = len(self) - len(found)
        self.timestamps = [self.timestamps[number] for number in found]
        self._decoded = frames[found] if missing else frames
        return missing

    def _pixels(self, frame: VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
        turns = _quarter_turns(frame)
        height, width = self.size if turns % 2 == 0 else self.size[::-1]
        scaled = reformatter.reformat(frame, width, height, "rgb24", interpolation="AREA")
        return np.ascontiguousarray(np.rot90(scaled.to_ndarray(), turns))


def open_video(file: Path | Member, *, short_side: int, stride: int = 1) -> Video:
    """Indexes the video in `file` by reading its packets; only the first frame is decoded.

    Raises UnreadableError when the file is missing, empty, no video, or nothing in it can be decoded.
    """
    with _open(file) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
        timestamps = sorted({packet.pts for packet in packets if packet.pts is not None})
        if not timestamps:
            raise UnreadableError("no frames" if not packets else "its frames carry no timestamps")
        keyframes = sorted(
            {packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None}
        )
    with _open(file) as container:
        _, frame = next(_frames(container), (None, None))
        if frame is None:
            raise UnreadableError("no frame can be decoded")
        height, width = frame.height, frame.width
        if _quarter_turns(frame) % 2:
            height, width = width, height
    shrink = min(1.0, short_side / min(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    return Video(file, timestamps[::stride], keyframes, size)


@contextmanager
def _open(file: Path | Member) -> Iterator[InputContainer]:
    """The opened file, any failure inside the block turned into UnreadableError."""
    try:
        if (file.stat().st_size if isinstance(file, Path) else file.size) == 0:
            raise UnreadableError("empty file")
        with av.open(str(file) if isinstance(file, Path) else file.open(), "r") as container:
            if not container.streams.video:
                raise UnreadableError("no video stream")
            yield container
    except (av.FFmpegError, OSError) as error:
        raise UnreadableError(error.strerror or str(error)) from error


def _frames(container: InputContainer) -> Iterator[tuple[int, VideoFrame]]:
    """The frames from here on in presentation order, with their timestamps, less the damaged ones."""
    for packet in container.demux(container.streams.video[0]):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue  # the decoder goes on with the next packet
        for frame in frames:
            if isinstance(frame, VideoFrame) and frame.pts is not None and not frame.is_corrupt:
                yield frame.pts, frame


def _quarter_turns(frame: VideoFrame) -> int:
    """Counter-clockwise quarter turns that bring the frame upright."""
    return round(frame.rotation / 90) % 4
