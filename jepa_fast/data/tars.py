"""Images and clips inside of tar files, read where they lie: any sample at any time, nothing unpacked.

One file of clips or of pictures, or webdataset shards: there, members that share their path up to the first dot of
their name are one sample, and its `.cls` is its label.
"""

import io
import os
import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jepa_fast.data.images import UnreadableError, read_image
from jepa_fast.data.source import UNLABELLED, Source, labels_of_folders, numbered

_HIDDEN = (".", "__MACOSX")


@dataclass(frozen=True)
class Member:
    """A file inside of an uncompressed tar file."""

    tar: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Its content. Raises UnreadableError when the tar file ends before it, or is gone."""
        try:
            descriptor = os.open(self.tar, os.O_RDONLY)
            try:
                content = os.pread(descriptor, self.size, self.offset)  # no position: workers share nothing
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from error
        if len(content) != self.size:
            raise UnreadableError(f"cut off: {len(content)} of {self.size} bytes")
        return content

    def open(self) -> io.BytesIO:
        return io.BytesIO(self.read())

    @property
    def path(self) -> Path:
        """For messages and suffixes."""
        return self.tar / self.name


def index_tars(paths: Sequence[Path], skipped: list[tuple[Path, str]]) -> list[Member]:
    """The regular files in some tar files, in their order; what cannot be read goes to `skipped`.

    Raises ValueError for a compressed tar file: nothing inside of it can be reached without unpacking what is before.
    """
    members: list[Member] = []
    for path in paths:
        before = len(members)
        try:
            with tarfile.open(path, "r:") as file:
                while True:
                    try:
                        entry = file.next()
                        if entry is None:
                            _check_end(path, file.offset)
                            break
                    except (tarfile.TarError, OSError) as error:
                        skipped.append((path, f"damaged after {len(members) - before} files: {error}"))
                        break
                    if entry.isfile() and not Path(entry.name).name.startswith(_HIDDEN):
                        members.append(
                            Member(path, entry.name.removeprefix("./"), entry.offset_data, entry.size)
                        )
        except tarfile.ReadError as error:
            if _is_compressed(path):
                raise ValueError(f"data: expected an uncompressed tar file, got {path}") from error
            skipped.append((path, f"no tar file: {error}"))
        except OSError as error:
            skipped.append((path, error.strerror or str(error)))
    return members


def expand_shards(pattern: str) -> list[Path]:
    """`shards-{0000..0011}.tar`, with several such patterns separated by `::`, as local paths.

    Raises ValueError for an address, FileNotFoundError for a shard that is not there, ModuleNotFoundError without the
    package webdataset.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ValueError(f"data: expected shards in local files, got {pattern}")
    from webdataset.shardlists import expand_urls

    paths = [Path(url) for url in expand_urls(pattern)]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"data: no such shard: {path} (of {pattern})")
    return paths


class TarImages(Source):
    """Pictures in tar files; labels from `.cls` members, else from the folders in the tar file."""

    def __init__(
        self,
        root: Path,
        images: Sequence[Member],
        labels: dict[tuple[Path, str], int],
        skipped: list[tuple[Path, str]],
    ) -> None:
        super().__init__(root, len(images), skipped)
        self.images = list(images)
        if labels:
            self.labels, self.classes = numbered(
                [labels.get(key_of(member), UNLABELLED) for member in images]
            )
        else:
            self.classes, self.labels, self.splits = labels_of_folders([member.name for member in images])
        reason: Exception | None = None
        for index, member in enumerate(self.images):
            try:
                read_image(member.open(), decode=False)
            except UnreadableError as error:
                reason = error
                self.report_failure(index, error)
        if len(self) and self.failed.all():
            raise ValueError(f"data: none of the {len(self)} images in {root} can be read: {reason}")

    def read(self, index: int, rng: random.Random | None = None) -> np.ndarray:
        return np.asarray(read_image(self.images[index].open()))[None]

    def name(self, index: int) -> str:
        member = self.images[index]
        return member.name if member.tar == self.root else f"{member.tar.name}/{member.name}"


def key_of(member: Member) -> tuple[Path, str]:
    """Of the sample that a member belongs to: its path up to the first dot of the name."""
    folder, _, name = member.name.rpartition("/")
    return member.tar, f"{folder}/{name.split('.', 1)[0]}"


def read_labels(members: Sequence[Member], skipped: list[tuple[Path, str]]) -> dict[tuple[Path, str], int]:
    """What the `.cls` members say, by sample."""
    labels = {}
    for member in members:
        if member.name.endswith(".cls"):
            try:
                labels[key_of(member)] = int(member.read())
            except (ValueError, UnreadableError) as error:
                skipped.append((member.path, f"no class: {error}"))
    return labels


def _check_end(path: Path, offset: int) -> None:
    """Raises tarfile.ReadError unless the file ends at `offset`: tarfile takes any bad header for the end."""
    with path.open("rb") as file:
        file.seek(offset)
        if any(file.read(2 * tarfile.BLOCKSIZE)):  # two blocks of zeros; some writers leave out one or both
            raise tarfile.ReadError(f"no header at byte {offset}")


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(6)
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"))
