"""Opening any kind of data by its path."""

import logging
from pathlib import Path

from jepa_fast.data.arrays import ArraySource
from jepa_fast.data.clips import ClipSource
from jepa_fast.data.dataset import CropDataset
from jepa_fast.data.folder import (
    DEFAULT_FRAME_MEMORY,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    find_media,
    open_folder,
    open_videos,
)
from jepa_fast.data.sample import sample_clips_folder
from jepa_fast.data.source import Source
from jepa_fast.data.tars import TarImages, expand_shards, index_tars, read_labels

logger = logging.getLogger("jepa_fast.data")

SAMPLE = "sample"


def open_source(
    data: str | Path,
    *,
    short_side: int,
    frames: int = 1,
    frame_stride: int = 1,
    frame_memory: int = DEFAULT_FRAME_MEMORY,
    label: str | None = None,
) -> Source:
    """The samples in `data`, which is one of

    - a folder of images and videos, a single such file, or "sample": four short clips from PyPI;
    - an .npz file with encoded images (`ArraySource`);
    - a .tar file of images or of videos;
    - webdataset shards: `shards-{0000..0011}.tar`, several patterns separated by `::`.

    short_side: video frames that are kept in memory are scaled down to it. frames: 1 gives images and single frames of
    videos, more gives clips of so many consecutive ones of every `frame_stride`-th frame. frame_memory: bytes of
    decoded frames to keep. label: which labels, where there are several: an array of an .npz file; for clips "file",
    whose classes are the videos, or "arrow_of_time", every clip forward and backward.

    Raises FileNotFoundError or ValueError, naming the argument, for what is not there, not of these kinds, or holds
    nothing that can be read; ModuleNotFoundError where PyAV or webdataset is needed and missing.
    """
    text = str(data)
    if not text:  # to Path it is the current folder
        raise ValueError('data: expected a path or "sample", got an empty one')
    if text == SAMPLE:
        return _folder(sample_clips_folder(), short_side, frames, frame_stride, frame_memory, label)
    if "{" in text or "::" in text or "://" in text or text.startswith("pipe:"):
        if Path(text).exists():
            return _folder(Path(text), short_side, frames, frame_stride, frame_memory, label)
        shards = expand_shards(text)
        return _tars(shards[0].parent, shards, short_side, frames, frame_stride, frame_memory, label)
    path = Path(text)
    if path.is_file() and path.suffix.lower() == ".npz":
        if frames > 1:
            raise ValueError(f"frames: expected 1 for the pictures in {path}, got {frames}")
        return _reported(ArraySource(path, label=label))
    if path.is_file() and (
        path.suffix.lower() == ".tar" or ".tar." in path.name.lower() or path.suffix == ".tgz"
    ):
        return _tars(path, [path], short_side, frames, frame_stride, frame_memory, label)
    return _folder(path, short_side, frames, frame_stride, frame_memory, label)


def _folder(path: Path, short_side: int, frames: int, stride: int, memory: int, label: str | None) -> Source:
    if frames == 1:
        _refuse_label(path, label)
        whole = (1.0, 1.0)  # short_side is the size of the smallest crop already
        return open_folder(
            path,
            image_size=short_side,
            scale=whole,
            aspect_ratio=whole,
            frame_stride=stride,
            frame_memory=memory,
        )
    _, paths, skipped = find_media(path)
    videos = open_videos(paths, skipped, short_side=short_side, stride=stride, memory=memory)
    root = path if path.is_dir() else path.parent
    if not videos:
        raise ValueError(f"data: no video in {path} that can be read, and frames is {frames}")
    return _reported(ClipSource(root, videos, frames, label=label, skipped=skipped))


def _tars(
    root: Path, paths: list[Path], short_side: int, frames: int, stride: int, memory: int, label: str | None
) -> Source:
    skipped: list[tuple[Path, str]] = []
    if frames == 1:
        _refuse_label(root, label)
    members = index_tars(paths, skipped)
    images = [member for member in members if member.path.suffix.lower() in IMAGE_SUFFIXES]
    clips = [member for member in members if member.path.suffix.lower() in VIDEO_SUFFIXES]
    if frames == 1 and images and clips:
        raise ValueError(f"data: expected images or videos in {root}, got {len(images)} and {len(clips)}")
    if frames == 1 and images:
        return _reported(TarImages(root, images, read_labels(members, skipped), skipped))
    if not clips:
        what = "video" if frames > 1 else "image or video"
        reason = f"; {skipped[0][0].name}: {skipped[0][1]}" if skipped else ""
        raise ValueError(f"data: no {what} in {root}{reason}")
    videos = open_videos(clips, skipped, short_side=short_side, stride=stride, memory=memory)
    if not videos:
        raise ValueError(f"data: none of the {len(clips)} videos in {root} can be read: {skipped[0][1]}")
    if frames == 1:
        return _reported(CropDataset(root, [], videos, image_size=short_side, skipped=skipped))
    return _reported(ClipSource(root, videos, frames, label=label, skipped=skipped))


def _refuse_label(root: Path, label: str | None) -> None:
    """Pictures outside of .npz files have one label each."""
    if label is not None:
        raise ValueError(f"label: expected none for the pictures in {root}, got {label}")


def _reported(source: Source) -> Source:
    for file, reason in source._skipped:
        logger.warning("skipped %s: %s", file, reason)
    return source
