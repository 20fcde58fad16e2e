"""What a folder is read as, what is passed over, and what is refused."""

import io
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepa_fast.data import CropDataset, open_folder
from jepa_fast.data import folder as folder_module

Write = Callable[..., Path]


def names(dataset: CropDataset) -> list[str]:
    return [dataset.name(index) for index in range(len(dataset))]


def test_images_and_videos_of_all_subfolders_in_a_fixed_order(
    tmp_path: Path, write_image: Write, write_video: Write
) -> None:
    for name in ("b/2.png", "b/1.JPG", "a/ä ö.png", "z.png"):
        write_image(tmp_path / name)
    write_video(tmp_path / "a" / "clip.mp4", 3)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    dataset = open_folder(tmp_path, image_size=16)
    images = ["a/ä ö.png", "b/1.JPG", "b/2.png", "z.png"]
    assert names(dataset) == [*images, *(f"a/clip.mp4 frame {n}" for n in range(3))]
    assert dataset.skipped == []


def test_what_cannot_be_read_is_skipped_with_a_warning_and_counted(
    tmp_path: Path,
    write_image: Write,
    write_video: Write,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_image(tmp_path / "good.png")
    half = write_image(tmp_path / "half.png", 1)
    half.write_bytes(half.read_bytes()[:400])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    with caplog.at_level(logging.WARNING, "jepa_fast.data"):
        dataset = open_folder(tmp_path, image_size=16)
    assert names(dataset) == ["good.png"]
    skipped = {path.name: reason for path, reason in dataset.skipped}
    assert sorted(skipped) == ["empty.jpg", "gone.png", "half.png", "pipe.png", "text.mp4", "text.png"]
    assert skipped["empty.jpg"] == "empty file"
    assert skipped["gone.png"] == "broken link"
    assert skipped["pipe.png"] == "not a regular file"
    assert len(caplog.records) == 6
    for path, reason in dataset.skipped:
        assert f"skipped {path}: {reason}" in caplog.text


def test_partly_damaged_video_keeps_its_good_frames(tmp_path: Path, sample_clips: Path) -> None:
    data = bytearray((sample_clips / "carphone_pristine.mp4").read_bytes())
    data[200_000:570_000:200] = bytes(1850)
    (tmp_path / "damaged.mp4").write_bytes(data)
    dataset = open_folder(tmp_path, image_size=16)
    ((path, reason),) = dataset.skipped
    assert path.name == "damaged.mp4"
    assert reason == f"{120 - len(dataset)} of 120 frames cannot be decoded"
    assert len(dataset) > 0


def test_a_single_file_is_a_dataset(tmp_path: Path, write_image: Write, write_video: Write) -> None:
    assert names(open_folder(write_image(tmp_path / "one.png"), image_size=16)) == ["one.png"]
    assert len(open_folder(write_video(tmp_path / "clip.mp4", 4), image_size=16)) == 4


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path, write_image: Write) -> None:
    for name in ("a.png", "._a.png", ".cache/b.png"):
        write_image(tmp_path / name)
    assert names(open_folder(tmp_path, image_size=16)) == ["a.png"]


def test_links_are_followed_and_loops_end(tmp_path: Path, write_image: Write) -> None:
    outside = write_image(tmp_path / "outside" / "b.png").parent
    inside = write_image(tmp_path / "data" / "a.png").parent
    (inside / "loop").symlink_to(inside)
    (inside / "other").symlink_to(outside)
    (inside / "same").symlink_to(outside)
    assert names(open_folder(inside, image_size=16)) == ["a.png", "other/b.png"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: None, FileNotFoundError, "data: no such file or folder: .*media"),
        (lambda path: path.mkdir(), ValueError, r"data: no image or video in .*media \(looked for .*\.jpg"),
        (
            lambda path: path.write_text("text"),
            ValueError,
            "data: expected a folder, an image or a video, got",
        ),
    ],
    ids=["missing", "empty", "text file"],
)
def test_nothing_to_read_is_refused(
    tmp_path: Path, make: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    make(tmp_path / "media")
    with pytest.raises(error, match=message):
        open_folder(tmp_path / "media", image_size=16)


def test_a_folder_in_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.mp4").touch()
    with pytest.raises(ValueError, match=r"none of the 2 files in .* can be read; a.jpg: empty file"):
        open_folder(tmp_path, image_size=16)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 0),
        ("scale", (0.0, 1.0)),
        ("scale", (0.8, 0.3)),
        ("scale", (0.3, 1.1)),
        ("aspect_ratio", (2.0, 1.0)),
        ("frame_stride", 0),
        ("frame_memory", -1),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, write_image: Write, name: str, value: Any) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        open_folder(tmp_path, **{"image_size": 16, name: value})


def test_large_folders_have_only_their_headers_read(
    tmp_path: Path, write_image: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "FULL_CHECK_IMAGES", 1)
    write_image(tmp_path / "good.png")
    half = write_image(tmp_path / "half.png", 1)
    half.write_bytes(half.read_bytes()[:400])
    (tmp_path / "empty.png").touch()
    dataset = open_folder(tmp_path, image_size=16)
    assert names(dataset) == ["good.png", "half.png"]
    assert [path.name for path, _ in dataset.skipped] == ["empty.png"]


def test_frames_are_decoded_into_memory_up_to_the_budget(tmp_path: Path, write_video: Write) -> None:
    paths = [write_video(tmp_path / f"{n}.mp4", 10) for n in range(2)]
    all_in_memory = open_folder(tmp_path, image_size=16)
    one = all_in_memory.videos[0].decoded_bytes
    assert one < 10 * 48 * 64 * 3  # scaled down
    half_in_memory = open_folder(tmp_path, image_size=16, frame_memory=one)
    none_in_memory = open_folder(tmp_path, image_size=16, frame_memory=0)
    for path in paths:
        path.unlink()
    assert all_in_memory.image(19) is not None
    assert half_in_memory.image(9) is not None
    with pytest.raises(Exception, match="No such file"):
        half_in_memory.image(10)
    with pytest.raises(Exception, match="No such file"):
        none_in_memory.image(0)


def test_real_photos(tmp_path: Path, shared_data: Path) -> None:
    archive = np.load(shared_data / "grocery_store_176.npz")
    data, offsets = archive["image_bytes"], archive["offsets"]
    for index in range(40):
        (tmp_path / f"{index:02}.jpg").write_bytes(data[offsets[index] : offsets[index + 1]].tobytes())
    shutil.copy(tmp_path / "00.jpg", tmp_path / "zz.jpg")
    os.truncate(tmp_path / "zz.jpg", 5000)
    dataset = open_folder(tmp_path, image_size=64)
    assert len(dataset) == 40
    assert [path.name for path, _ in dataset.skipped] == ["zz.jpg"]
    first = Image.open(io.BytesIO(data[: offsets[1]].tobytes())).convert("RGB")
    assert np.array_equal(np.asarray(dataset.image(0)), np.asarray(first))
