"""Arrays, tar files, shards and clips: what is read, labelled, skipped and refused."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepa_fast.data import StepBatches, View, open_source

Write = Callable[..., Path]
NOTHING = np.zeros(3, np.uint8)


def encoded(seed: int, kind: str = "PNG") -> bytes:
    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20 + seed, 30, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def arrays(path: Path, files: list[bytes], **others: Any) -> Path:
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(path, image_bytes=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, **others)
    return path


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[None]


class TestArrays:
    def test_images_labels_and_splits(self, tmp_path: Path) -> None:
        files = [encoded(i) for i in range(4)]
        names = np.frombuffer(b"cat\ndog", np.uint8)
        path = arrays(
            tmp_path / "a.npz",
            files,
            label=np.array([0, 1, 1, -1], np.int16),
            class_names=names,
            split=np.array([0, 0, 2, 1]),
        )
        source = open_source(path, short_side=8)
        assert len(source) == 4
        assert all(np.array_equal(source.read(i), pixels_of(file)) for i, file in enumerate(files))
        assert source.classes == ("cat", "dog")
        assert source.labels is not None
        assert source.splits is not None
        assert source.labels.tolist() == [0, 1, 1, -1]
        assert source.splits.tolist() == [0, 0, 2, 1]

    def test_plain_pictures(self, tmp_path: Path) -> None:
        pictures = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)
        np.savez(tmp_path / "a.npz", images=pictures)
        source = open_source(tmp_path / "a.npz", short_side=8)
        assert np.array_equal(source.read(2), pictures[2:])

    def test_several_cameras_and_labels_of_episodes(self, tmp_path: Path) -> None:
        files = [encoded(i) for i in range(12)]  # 2 cameras, 3 episodes of 2 frames
        parts = {}
        for camera, own in enumerate((files[:6], files[6:])):
            parts[f"image_{camera}_bytes"] = np.frombuffer(b"".join(own), np.uint8)
            parts[f"image_{camera}_offsets"] = np.cumsum([0, *map(len, own)])
        text = np.frombuffer(b"push\nlift\npush", np.uint8)
        np.savez(tmp_path / "a.npz", state=np.zeros((3, 2, 4)), instruction=text, **parts)
        source = open_source(tmp_path / "a.npz", short_side=8)
        assert source.classes == ("lift", "push")
        assert source.labels is not None
        assert source.labels.tolist() == [1, 1, 0, 0, 1, 1] * 2
        assert np.array_equal(source.read(7), pixels_of(files[7]))
        assert source.name(7) == "image_1[1]"

    def test_a_damaged_entry_is_skipped_counted_and_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        files = [encoded(i, "JPEG") for i in range(5)]
        files[1] = b""
        files[3] = files[3][:-300]  # a good header, and a part of the image
        source = open_source(arrays(tmp_path / "a.npz", files), short_side=8)
        assert [path.name for path, _ in source.skipped] == ["image[1]"]
        made = StepBatches(source, 5, [View(8)])[0]
        assert len(made) == 5
        assert set(made.indices.tolist()) == {0, 2, 4}
        assert [path.name for path, _ in source.skipped] == ["image[1]", "image[3]"]
        assert "image[3]" in caplog.text

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"x": np.zeros(3)}, r"expected image_bytes and offsets, or images, in .*a.npz, got x"),
            (
                {"images": np.zeros((2, 3, 4))},
                r"expected images uint8 \[n, H, W, 3\] with .* in .*, got float64 \[2, 3, 4\]",
            ),
            (
                {"image_bytes": NOTHING, "offsets": np.array([0, 9])},
                r"the offsets of image_bytes in .* its 3 bytes",
            ),
            (
                {"image_bytes": NOTHING, "offsets": np.array([0, 3])},
                r"none of the 1 images in .*: not an image",
            ),
            (
                {"image_bytes": np.array([{}], dtype=object)},
                r".*a.npz is no .npz file of plain arrays: Object",
            ),
        ],
    )
    def test_bad_files_are_named(self, tmp_path: Path, content: dict[str, Any], message: str) -> None:
        np.savez(tmp_path / "a.npz", **content)
        with pytest.raises(ValueError, match=f"data: {message}"):
            open_source(tmp_path / "a.npz", short_side=8)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"offsets": np.zeros(3)}, r"expected the offsets of image_bytes as integers \[n \+ 1\] in F, got float"),
            ({"offsets": np.array(["a", "b"])}, r"expected the offsets of image_bytes as .* in F, got <U1 \[2\]"),
            ({"offsets": np.zeros(1, int)}, r"expected the offsets of image_bytes as .* in F, got int64 \[1\]"),
            ({"offsets": np.array([-5, 2])}, "the offsets of image_bytes in F do not fit its"),
            ({"offsets": np.array([9, 5, 2], np.uint64)}, "the offsets of image_bytes in F do not fit its"),
            ({"image_bytes": NOTHING[None]}, r"expected image_bytes uint8 \[bytes\] in F, got uint8 \[1, 3\]"),
            ({"images": np.zeros((4, 0, 3, 3), np.uint8)}, r"expected images uint8 \[n, H, W, 3\].* in F, got"),
            ({"images": np.zeros((0, 3, 3, 3), np.uint8)}, r"expected images uint8 \[n, H, W, 3\].* in F, got"),
            ({"label": np.zeros(2, int)}, r"expected label integers \[3\], -1 or more in F, got int64 \[2\] from 0"),
            ({"label": np.zeros(4, int)}, r"expected label integers \[3\], -1 or more in F, got int64 \[4\]"),
            ({"label": np.zeros(3)}, r"expected label integers \[3\], -1 or more in F, got float64 \[3\]"),
            ({"coarse_label": np.arange(-2, 1)}, r"expected coarse_label integers .* in F, got .* from -2 to 0"),
            ({"class_names": np.frombuffer(b"a\nb", np.uint8)}, "expected 3 or more class_names in F, .*, got 2"),
            ({"class_names": np.array(["a", "b"])}, "expected 3 or more class_names in F, .*, got 2"),
            ({"class_names": np.zeros(3)}, r"expected class_names strings .* in F, got float64 \[3\]"),
            ({"class_names": np.full(3, 255, np.uint8)}, r"expected class_names strings .* in F, got uint8 \[3\]"),
            ({"split": np.array(["train"] * 3)}, r"expected split integers \[3\] from 0 to 2 in F, got <U5 \[3\]"),
            ({"split": np.arange(1, 4)}, r"expected split integers .* in F, got int64 \[3\] from 1 to 3"),
            ({"split": np.zeros(5, int)}, r"expected split integers \[3\] from 0 to 2 in F, got int64 \[5\]"),
        ],
    )  # fmt: skip
    def test_arrays_of_other_content_are_named(
        self, tmp_path: Path, content: dict[str, Any], message: str
    ) -> None:
        path = arrays(tmp_path / "good.npz", [encoded(i) for i in range(3)], label=np.arange(3))
        with np.load(path) as good:
            np.savez(tmp_path / "a.npz", **(dict(good) | content))
        with pytest.raises(ValueError, match="^data: " + message.replace(" in F", r" in [^ ]*a\.npz")):
            open_source(tmp_path / "a.npz", short_side=8)

    def test_files_of_other_kinds_are_named(self, tmp_path: Path) -> None:
        with (tmp_path / "single.npz").open("wb") as file:
            np.save(file, np.zeros(3))
        np.savez_compressed(tmp_path / "damaged.npz", x=np.arange(9999) ** 3)
        content = bytearray((tmp_path / "damaged.npz").read_bytes())
        content[2000:2100] = bytes(100)
        (tmp_path / "damaged.npz").write_bytes(content)
        for name in ("single.npz", "damaged.npz"):
            with pytest.raises(ValueError, match=rf"^data: [^ ]*{name} is no .npz file of plain arrays: "):
                open_source(tmp_path / name, short_side=8)

    def test_names_are_lines_or_strings_and_numbers_without_names_those_that_occur(
        self, tmp_path: Path
    ) -> None:
        files, labels = [encoded(i) for i in range(3)], np.array([2, -1, 0])
        for names in (np.array(["a", "b", "c"]), np.frombuffer(b"a\nb\nc\n", np.uint8)):
            path = arrays(tmp_path / "a.npz", files, label=labels, class_names=names)
            source = open_source(path, short_side=8)
            assert source.labels is not None
            assert (source.classes, source.labels.tolist()) == (("a", "b", "c"), [2, -1, 0])
        path = arrays(tmp_path / "b.npz", files, label=np.array([2000, -1, 0]))
        source = open_source(path, short_side=8)
        assert source.labels is not None
        assert (source.classes, source.labels.tolist()) == (("0", "2000"), [1, -1, 0])

    def test_other_content_and_unknown_labels(self, tmp_path: Path) -> None:
        (tmp_path / "b.npz").write_bytes(b"no zip")
        with pytest.raises(ValueError, match=r"data: .*b.npz is no .npz file"):
            open_source(tmp_path / "b.npz", short_side=8)
        path = arrays(tmp_path / "a.npz", [encoded(0)], label=np.zeros(1, np.int64))
        with pytest.raises(
            ValueError, match=r"label: expected one of the labels in .* \(label\), got colour"
        ):
            open_source(path, short_side=8, label="colour")

    def test_the_real_photos(self, shared_data: Path) -> None:
        source = open_source(shared_data / "grocery_store_176.npz", short_side=64, label="coarse_label")
        assert source.labels is not None
        assert source.splits is not None
        assert (len(source), len(source.classes), int(source.labels.max())) == (5421, 43, 42)
        assert source.splits.bincount().tolist() == [2640, 296, 2485]


class TestTars:
    def test_pictures_with_classes_in_any_order_of_access(self, tmp_path: Path) -> None:
        members = {f"{name}/{i}.png": encoded(i) for i, name in enumerate(("cat", "dog", "cat"))}
        source = open_source(tar(tmp_path / "a.tar", members), short_side=8)
        assert source.classes == ("cat", "dog")
        assert source.labels is not None
        assert source.labels.tolist() == [0, 1, 0]
        for index in (2, 0, 1):
            assert np.array_equal(source.read(index), pixels_of(members[source.name(index)]))

    def test_shards_of_webdataset(self, tmp_path: Path) -> None:
        webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
        for shard in range(2):
            with webdataset.TarWriter(str(tmp_path / f"part-{shard:03}.tar")) as writer:
                for i in range(3):
                    key, label = f"s{shard}_{i}", (shard + i) % 3
                    writer.write({"__key__": key, "png": encoded(3 * shard + i), "cls": label})
        source = open_source(str(tmp_path / "part-{000..001}.tar"), short_side=8)
        assert [source.name(i) for i in (0, 5)] == ["part-000.tar/s0_0.png", "part-001.tar/s1_2.png"]
        assert source.labels is not None
        assert source.labels.tolist() == [0, 1, 2, 1, 2, 0]
        assert np.array_equal(source.read(4), pixels_of(encoded(4)))

    def test_shards_without_webdataset_name_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "webdataset.shardlists", None)
        with pytest.raises(ModuleNotFoundError, match="webdataset"):
            open_source(str(tmp_path / "part-{000..001}.tar"), short_side=8)

    def test_clips(self, tmp_path: Path, write_video: Write) -> None:
        first, second = write_video(tmp_path / "1.mp4", 12), write_video(tmp_path / "2.mp4", 5)
        short = write_video(tmp_path / "3.mp4", 3)
        members = {
            "wave/a.mp4": first.read_bytes(),
            "nod/b.mp4": second.read_bytes(),
            "nod/c.mp4": short.read_bytes(),
        }
        source = open_source(
            tar(tmp_path / "clips.tar", members | {"LICENSE.txt": b""}), short_side=24, frames=4
        )
        assert len(source) == 4  # 3 clips side by side in one, 1 in the other
        assert source.classes == ("nod", "wave")
        assert source.labels is not None
        assert source.labels.tolist() == [1, 1, 1, 0]
        clip = source.read(1)
        assert clip.shape == (4, 24, 32, 3)
        frames = open_source(tmp_path / "1.mp4", short_side=24)
        assert np.array_equal(clip, np.concatenate([frames.read(i) for i in range(4, 8)]))
        starts = {source.read(0, random.Random(seed)).tobytes() for seed in range(40)}
        assert len(starts) > 5  # anywhere in the video
        assert [(path.name, reason) for path, reason in source.skipped] == [
            ("c.mp4", "3 frames, fewer than the 4 of a clip")
        ]
        by_file = open_source(tmp_path / "clips.tar", short_side=24, frames=4, label="file")
        assert by_file.classes == ("wave/a.mp4", "nod/b.mp4")

    def test_clips_forward_and_backward(self, tmp_path: Path, write_video: Write) -> None:
        for place, number in (("train/a", 12), ("test/b", 5)):
            (tmp_path / place).parent.mkdir()
            write_video(tmp_path / f"{place}.mp4", number)
        forward = open_source(tmp_path, short_side=24, frames=4)
        assert forward.labels is None  # no folder under train and test
        source = open_source(tmp_path, short_side=24, frames=4, label="arrow_of_time")
        assert source.classes == ("forward", "backward")
        assert source.labels is not None
        assert source.splits is not None
        assert source.groups is not None
        assert source.labels.tolist() == [0, 1] * 4
        assert source.splits.tolist() == [2, 2] + [0] * 6
        assert source.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        for clip in range(4):
            assert np.array_equal(source.read(2 * clip), forward.read(clip))
            assert np.array_equal(source.read(2 * clip + 1), forward.read(clip)[::-1])
        assert [source.name(i) for i in (4, 5)] == ["train/a.mp4 clip 1", "train/a.mp4 clip 1 backward"]

    def test_labels_that_clips_and_pictures_do_not_have(self, tmp_path: Path, write_video: Write) -> None:
        write_video(tmp_path / "1.mp4", 4)
        with pytest.raises(
            ValueError, match=r"label: expected file or arrow_of_time for the clips in .*, got x"
        ):
            open_source(tmp_path, short_side=24, frames=2, label="x")
        with pytest.raises(
            ValueError, match=r"label: expected none for the pictures in .*, got arrow_of_time"
        ):
            open_source(tmp_path, short_side=24, label="arrow_of_time")

    def test_what_is_damaged_is_skipped(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "a.tar", {"a.png": encoded(0), "b.png": b"nothing", "c.png": encoded(2)})
        source = open_source(path, short_side=8)
        assert [str(file.name) for file, _ in source.skipped] == ["b.png"]
        content = path.read_bytes()
        path.write_bytes(content[: 512 + 2048 + 700])
        cut = open_source(path, short_side=8)
        assert cut.skipped
        assert np.array_equal(cut.read(0), pixels_of(encoded(0)))

    @pytest.mark.parametrize("fault", ["flipped", "zeroed", "cut"])
    def test_a_damaged_header_is_reported(self, tmp_path: Path, fault: str) -> None:
        pytest.importorskip("webdataset", reason="webdataset is not installed")
        names = [f"{i}.png" for i in range(4)]
        tar(tmp_path / "part-0.tar", dict.fromkeys(names, encoded(0)))
        path = tar(tmp_path / "part-1.tar", dict.fromkeys(names, encoded(0)))
        content = bytearray(path.read_bytes())
        with tarfile.open(path) as file:
            start = file.getmembers()[2].offset
        if fault == "cut":
            del content[start + 100 :]
        else:
            content[start : start + 512] = bytes(512) if fault == "zeroed" else b"\x5a" * 512
        path.write_bytes(content)
        source = open_source(f"{tmp_path}/part-0.tar::{path}", short_side=8)
        assert len(source) == 6
        assert source.skipped == [(path, f"damaged after 2 files: no header at byte {start}")]

    @pytest.mark.parametrize("blocks", [0, 1, 2])
    def test_a_tar_file_may_end_without_its_last_blocks(self, tmp_path: Path, blocks: int) -> None:
        path = tar(tmp_path / "a.tar", {"a.png": encoded(0)})
        with tarfile.open(path) as file:
            while file.next():
                pass
            end = file.offset
        path.write_bytes(path.read_bytes()[: end + 512 * blocks])
        assert not open_source(path, short_side=8).skipped

    @pytest.mark.parametrize("value", [99999999, 10**30])
    def test_classes_are_those_that_occur(self, tmp_path: Path, value: int) -> None:
        members: dict[str, bytes] = {}
        for i, number in enumerate((7, value, -1, 7)):
            members |= {f"{i}.png": encoded(i), f"{i}.cls": b"%d" % number}
        source = open_source(tar(tmp_path / "a.tar", members), short_side=8)
        assert source.classes == ("7", str(value))
        assert source.labels is not None
        assert source.labels.tolist() == [0, 1, -1, 0]

    def test_no_path_is_not_the_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match='data: expected a path or "sample", got an empty one'):
            open_source("", short_side=8)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ("https://host/part-{000..001}.tar", r"data: expected shards in local files, got https://host"),
            ("pipe:cat a.tar", r"data: expected shards in local files, got pipe:cat a.tar"),
            ("{folder}/empty.tar", r"data: no image or video in .*empty.tar"),
            ("{folder}/packed.tar", r"data: expected an uncompressed tar file, got .*packed.tar"),
            ("{folder}/both.tar", r"data: expected images or videos in .*both.tar, got 1 and 1"),
        ],
    )
    def test_what_cannot_be_read_is_named(
        self, tmp_path: Path, write_video: Write, data: str, message: str
    ) -> None:
        tar(tmp_path / "empty.tar", {"a.txt": b"text"})
        tar(tmp_path / "packed.tar", {"a.png": encoded(0)}, "w:gz")
        tar(
            tmp_path / "both.tar",
            {"a.png": encoded(0), "a.mp4": write_video(tmp_path / "1.mp4", 3).read_bytes()},
        )
        with pytest.raises(ValueError, match=message):
            open_source(data.replace("{folder}", str(tmp_path)), short_side=8)

    def test_a_shard_that_is_missing_is_named(self, tmp_path: Path) -> None:
        pytest.importorskip("webdataset", reason="webdataset is not installed")
        tar(tmp_path / "part-0.tar", {"a.png": encoded(0)})
        with pytest.raises(FileNotFoundError, match=r"data: no such shard: .*part-1.tar \(of "):
            open_source(str(tmp_path / "part-{0..1}.tar"), short_side=8)


def test_labels_of_folders_and_splits(tmp_path: Path, write_image: Write) -> None:
    for i, name in enumerate(("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "test/dog/4.png")):
        write_image(tmp_path / name, i)
    source = open_source(tmp_path, short_side=8)
    assert source.classes == ("cat", "dog")
    assert source.labels is not None
    assert source.splits is not None
    found = {source.name(i): (int(source.labels[i]), int(source.splits[i])) for i in range(4)}
    expected = {"train/cat/1.png": (0, 0), "train/dog/2.png": (1, 0), "val/cat/3.png": (0, 1)}
    assert found == expected | {"test/dog/4.png": (1, 2)}


def test_a_json_beside_an_image_is_no_image(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar", {"a.png": encoded(0), "a.json": json.dumps({"x": 1}).encode(), "a.cls": b"x"}
    )
    source = open_source(path, short_side=8)
    assert len(source) == 1
    assert [(file.name, reason.split(":")[0]) for file, reason in source.skipped] == [("a.cls", "no class")]
