"""Opening a folder of images and videos."""

import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from jepa_fast.data.dataset import CropDataset
from jepa_fast.data.images import UnreadableError, read_image
from jepa_fast.data.progress import slow_progress
from jepa_fast.data.tars import Member

if TYPE_CHECKING:
    from jepa_fast.data.videos import Video

logger = logging.getLogger("jepa_fast.data")

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp"}
)

# Up to this many images are decoded once when the folder is opened; of larger folders only the headers.
FULL_CHECK_IMAGES = 10_000

# Decoded video frames kept in memory, in bytes.
DEFAULT_FRAME_MEMORY = 2 << 30


def open_folder(
    path: Path | str,
    *,
    image_size: int,
    seed: int = 0,
    scale: tuple[float, float] = (0.3, 1.0),
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    frame_stride: int = 1,
    frame_memory: int = DEFAULT_FRAME_MEMORY,
) -> CropDataset:
    """The images and videos in the folder `path` and its subfolders; a single such file will do too.

    `image_size` is the side of the crops in pixels, `scale` and `aspect_ratio` are the bounds of their
    area and shape (`random_crop_box`). Of videos every `frame_stride`-th frame is a sample. Frames are
    scaled down to the least short side that no crop has to be enlarged from, and kept in memory, file
    by file, up to `frame_memory` bytes; beyond it a frame is decoded at every access, which takes as
    long as decoding the file from its last keyframe.

    Names that start with a dot are passed over, as is every file whose suffix is of neither kind.
    Symbolic links are followed, each folder once.

    Raises FileNotFoundError when `path` does not exist, ValueError when it holds no image or video, or
    none that can be read, and for arguments out of range.
    """
    root = Path(path)
    if image_size < 1:
        raise ValueError(f"image_size: expected at least 1 pixel, got {image_size}")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale: expected 0 < low <= high <= 1, got {scale}")
    if not 0 < aspect_ratio[0] <= aspect_ratio[1]:
        raise ValueError(f"aspect_ratio: expected 0 < low <= high, got {aspect_ratio}")
    if frame_stride < 1:
        raise ValueError(f"frame_stride: expected at least 1 frame, got {frame_stride}")
    if frame_memory < 0:
        raise ValueError(f"frame_memory: expected 0 bytes or more, got {frame_memory}")
    image_paths, video_paths, skipped = find_media(root)
    if not image_paths and not video_paths and not skipped:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        raise ValueError(f"data: no image or video in {root} (looked for {suffixes})")
    images = _check_images(image_paths, skipped)
    # A crop's short edge is at least this fraction of the picture's short side.
    least_edge = math.sqrt(scale[0] * min(aspect_ratio[0], 1 / aspect_ratio[1]))
    videos = open_videos(
        video_paths,
        skipped,
        short_side=math.ceil(image_size / least_edge),
        stride=frame_stride,
        memory=frame_memory,
    )
    for file, reason in skipped:
        logger.warning("skipped %s: %s", file, reason)
    if not images and not videos:
        file, reason = skipped[0]
        raise ValueError(
            f"data: none of the {len(skipped)} files in {root} can be read; {file.name}: {reason}"
        )
    return CropDataset(
        root if root.is_dir() else root.parent,
        images,
        videos,
        image_size=image_size,
        seed=seed,
        scale=scale,
        aspect_ratio=aspect_ratio,
        skipped=skipped,
    )


def find_media(root: Path) -> tuple[list[Path], list[Path], list[tuple[Path, str]]]:
    """Image paths and video paths, each sorted, and what could not be looked at."""
    if not root.exists():
        raise FileNotFoundError(f"data: no such file or folder: {root}")
    if not root.is_dir() and root.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise ValueError(f"data: expected a folder, an image or a video, got {root}")
    skipped: list[tuple[Path, str]] = []
    files = [root] if not root.is_dir() else _walk(root, skipped)
    images: list[Path] = []
    videos: list[Path] = []
    for file in files:
        suffix = file.suffix.lower()
        if suffix not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            continue
        if not file.exists():
            skipped.append((file, "broken link"))
        elif not file.is_file():  # a pipe or a device would block for ever
            skipped.append((file, "not a regular file"))
        else:
            (images if suffix in IMAGE_SUFFIXES else videos).append(file)
    return images, videos, skipped


def _walk(root: Path, skipped: list[tuple[Path, str]]) -> list[Path]:
    def unreadable(error: OSError) -> None:
        skipped.append((Path(error.filename), error.strerror or str(error)))

    files: list[Path] = []
    visited: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # a link that leads back
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _check_images(paths: list[Path], skipped: list[tuple[Path, str]]) -> list[Path]:
    decode = len(paths) <= FULL_CHECK_IMAGES

    def reason_against(path: Path) -> str | None:
        try:
            read_image(path, decode=decode)
        except UnreadableError as error:
            return str(error)
        return None

    readable = []
    with slow_progress("checking images", len(paths)) as advance, ThreadPoolExecutor() as pool:
        for path, reason in zip(paths, pool.map(reason_against, paths), strict=True):
            advance()
            if reason is None:
                readable.append(path)
            else:
                skipped.append((path, reason))
    return readable


def open_videos(
    paths: Sequence[Path | Member],
    skipped: list[tuple[Path, str]],
    *,
    short_side: int,
    stride: int,
    memory: int,
) -> list["Video"]:
    """The videos that can be read, decoded up to `memory` bytes of frames; the others go to `skipped`."""
    if not paths:
        return []
    from jepa_fast.data.videos import open_video  # PyAV is needed for videos only

    videos = []
    with slow_progress("indexing videos", len(paths)) as advance:
        for path in paths:
            try:
                videos.append(open_video(path, short_side=short_side, stride=stride))
            except UnreadableError as error:
                skipped.append((path if isinstance(path, Path) else path.path, str(error)))
            advance()
    in_memory = []
    for video in videos:
        if video.decoded_bytes <= memory:
            memory -= video.decoded_bytes
            in_memory.append(video)
    with slow_progress("decoding video frames", sum(map(len, in_memory))) as advance:
        for video in in_memory:
            total = len(video)
            try:
                missing = video.decode_all(advance)
            except UnreadableError as error:
                skipped.append((video.path, str(error)))
                videos.remove(video)
                continue
            if missing:
                skipped.append((video.path, f"{missing} of {total} frames cannot be decoded"))
            if missing == total:
                videos.remove(video)
    return videos
