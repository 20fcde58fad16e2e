"""Frames by number: the same from memory and by seeking, damage found and counted."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed")

import av

from jepa_fast.data.images import UnreadableError
from jepa_fast.data.videos import open_video

Write = Callable[..., Path]


def ignore() -> None:
    pass


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "clip.mkv", "clip.mpg"])
def test_seeking_gives_the_frames_of_a_full_decode(tmp_path: Path, write_video: Write, name: str) -> None:
    codec = "mpeg2video" if name.endswith("mpg") else "mpeg4"
    path = write_video(tmp_path / name, 25, codec=codec)
    seeking, memory = open_video(path, short_side=24), open_video(path, short_side=24)
    assert memory.decode_all(ignore) == 0
    assert len(seeking) == len(memory) == 25
    for number in np.random.default_rng(0).permutation(25):
        assert np.array_equal(seeking.frame(number), memory.frame(number)), number


def test_frames_are_scaled_to_the_short_side_and_never_up(tmp_path: Path, write_video: Write) -> None:
    path = write_video(tmp_path / "clip.mp4", 2)
    assert open_video(path, short_side=24).frame(0).shape == (24, 32, 3)
    assert open_video(path, short_side=480).frame(0).shape == (48, 64, 3)


def test_frames_come_in_presentation_order(tmp_path: Path, write_video: Write) -> None:
    video = open_video(write_video(tmp_path / "clip.mp4", 20), short_side=48)
    for number in (0, 7, 19):
        with av.open(str(video.path)) as container:
            expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][number]
        assert np.abs(video.frame(number).astype(int) - expected).mean() < 2


def test_stride_takes_every_nth_frame(tmp_path: Path, write_video: Write) -> None:
    path = write_video(tmp_path / "clip.mp4", 20)
    every, third = open_video(path, short_side=48), open_video(path, short_side=48, stride=3)
    assert len(third) == 7
    assert np.array_equal(third.frame(4), every.frame(12))
    third.decode_all(ignore)
    assert np.array_equal(third.frame(4), every.frame(12))


def test_decoding_reports_its_progress(tmp_path: Path, write_video: Write) -> None:
    calls = []
    open_video(write_video(tmp_path / "clip.mp4", 12), short_side=48).decode_all(lambda: calls.append(1))
    assert len(calls) == 12


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"no video at all " * 50, "Invalid data")],
    ids=["empty", "text"],
)
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=reason):
        open_video(path, short_side=48)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="No such file"):
        open_video(tmp_path / "clip.mp4", short_side=48)


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UnreadableError, match="no video stream"):
        open_video(path, short_side=48)


def test_a_cut_off_file_keeps_its_first_frames(tmp_path: Path, write_video: Write) -> None:
    path = write_video(tmp_path / "clip.mkv", 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video = open_video(path, short_side=48)
    missing = video.decode_all(ignore)
    assert 5 <= len(video) < 30
    assert missing <= 1
    assert np.array_equal(video.frame(3), open_video(path, short_side=48).frame(3))


def test_damaged_frames_are_dropped_and_counted(tmp_path: Path, sample_clips: Path) -> None:
    data = bytearray((sample_clips / "carphone_pristine.mp4").read_bytes())
    rng = np.random.default_rng(0)
    # Past the first third of the frames' data, short of the index at the end of the file.
    data[200_000:570_000:200] = rng.integers(0, 256, 1850, dtype=np.uint8).tobytes()
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    video = open_video(path, short_side=144)
    missing = video.decode_all(ignore)
    assert missing > 0
    assert len(video) == 120 - missing
    intact = open_video(sample_clips / "carphone_pristine.mp4", short_side=144)
    assert np.array_equal(video.frame(10), intact.frame(10))


def test_a_frame_that_cannot_be_reached_is_an_error(tmp_path: Path, write_video: Write) -> None:
    video = open_video(write_video(tmp_path / "clip.mp4", 10), short_side=48)
    video.timestamps[4] += 1  # no frame has that
    with pytest.raises(UnreadableError, match="cannot be decoded"):
        video.frame(4)


@pytest.mark.skipif(
    not hasattr(av.video.stream.VideoStream, "set_display_rotation"), reason="this PyAV writes no rotation"
)
@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotated_video_is_turned_upright(tmp_path: Path, degrees: int, turns: int) -> None:
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:16, :16] = 255
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(degrees)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(upright, format="rgb24")))
        container.mux(stream.encode())
    frame = open_video(path, short_side=48).frame(0)
    expected = np.rot90(upright, turns)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 8


def test_the_sample_clips(sample_clips: Path) -> None:
    lengths = {path.name: len(open_video(path, short_side=64)) for path in sample_clips.glob("*.mp4")}
    assert lengths == {
        "bigbuckbunny.mp4": 132,
        "bikes.mp4": 250,
        "carphone_distorted.mp4": 120,
        "carphone_pristine.mp4": 120,
    }


def test_real_clips_by_seeking(tmp_path: Path, shared_data: Path) -> None:
    with tarfile.open(shared_data / "video_clips.tar") as archive:
        archive.extract("sam2/05_default_juggle.mp4", tmp_path, filter="data")
        archive.extract("intel_asl/bird.mkv", tmp_path, filter="data")
    for path in (tmp_path / "sam2" / "05_default_juggle.mp4", tmp_path / "intel_asl" / "bird.mkv"):
        seeking, memory = open_video(path, short_side=64), open_video(path, short_side=64)
        assert memory.decode_all(ignore) == 0
        for number in (0, len(memory) // 2, len(memory) - 1):
            assert np.array_equal(seeking.frame(number), memory.frame(number))
