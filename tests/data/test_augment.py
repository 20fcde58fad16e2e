"""Crops and colours on the device: Pillow's values, for a whole batch and whatever the padding."""

import colorsys
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from jepa_fast.data import View, normalize, views
from jepa_fast.data.augment import central_view, least_edge, resample_weights
from jepa_fast.data.crops import resized_crop

PLAIN = (1.0, 1.0, 1.0, 0.0, 0.0)
BLACK = torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8)
LEVEL = 1 / (
    255 * 0.229
)  # one of 256 levels, after the normalisation of the channel with the smallest deviation


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def batch(pictures: list[Image.Image], height: int, width: int) -> torch.Tensor:
    """With noise beyond the pictures, of which nothing may be seen."""
    pixels = torch.randint(0, 256, (len(pictures), 1, 3, height, width), dtype=torch.uint8)
    for row, image in zip(pixels, pictures, strict=True):
        row[0, :, : image.height, : image.width] = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    return pixels


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 70), st.integers(1, 40), st.integers(0, 10_000))
def test_a_crop_is_pillows_before_rounding(width: int, height: int, size: int, seed: int) -> None:
    rng = random.Random(seed)
    left, top = rng.randrange(width), rng.randrange(height)
    box = (left, top, rng.randrange(left, width) + 1, rng.randrange(top, height) + 1)
    image = picture(width, height, seed)
    parameters = torch.tensor([[(*box, 0.0, *PLAIN)]])
    got = views(batch([image], height + 3, width + 5), parameters, size)[0, 0, 0]
    # Pillow rounds to 8 bits after each of its two passes, and its weights, too.
    assert (got - normalize(resized_crop(image, box, size))).abs().max() < 1.6 * LEVEL


def test_pictures_of_different_sizes_and_several_views_in_one_call() -> None:
    pictures = [picture(60, 40, 1), picture(33, 50, 2)]
    view = View(16, 3, flip=0.5)
    parameters = torch.tensor(
        [view.draw(image.size, random.Random(4 + i)) for i, image in enumerate(pictures)]
    )
    got = views(batch(pictures, 50, 60), parameters, 16)
    assert got.shape == (2, 3, 1, 3, 16, 16)
    assert 0 < parameters[..., 4].sum() < 6
    for image, rows, drawn in zip(got, parameters, [0, 1], strict=True):
        for one, numbers in zip(image, rows, strict=True):
            left, top, right, bottom = map(int, numbers[:4])
            expected = normalize(resized_crop(pictures[drawn], (left, top, right, bottom), 16))
            expected = expected.flip(2) if numbers[4] else expected
            assert (one[0] - expected).abs().max() < 1.6 * LEVEL


def test_all_frames_of_a_clip_are_treated_alike() -> None:
    frame = batch([picture(40, 30)], 30, 40)
    clip = frame.expand(1, 4, -1, -1, -1).contiguous()
    numbers = View(12, 1, colour=1.0, gray=0.3, flip=0.5).draw((40, 30), random.Random(3))
    got = views(clip, torch.tensor([numbers]), 12)
    assert got.shape == (1, 1, 4, 3, 12, 12)
    assert all(torch.equal(got[0, 0, 0], got[0, 0, i]) for i in range(4))


def colours(image: Image.Image, numbers: tuple[float, ...]) -> torch.Tensor:
    size = image.width
    parameters = torch.tensor([[(0.0, 0.0, size, size, 0.0, *numbers)]])
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return views(batch([image], size, size), parameters, size)[0, 0, 0] * std + mean


@pytest.mark.parametrize(
    ("place", "enhance"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
)
@pytest.mark.parametrize("factor", [0.6, 1.3])
def test_brightness_contrast_and_saturation_are_pillows(place: int, enhance: Any, factor: float) -> None:
    image = picture(24, 24)
    numbers = [*PLAIN]
    numbers[place] = factor
    expected = torch.from_numpy(np.asarray(enhance(image).enhance(factor)).copy()).permute(2, 0, 1) / 255
    # Pillow rounds the grey it blends with to a whole level, and the result once more.
    assert (colours(image, tuple(numbers)) - expected).abs().max() < 1.6 / 255


def test_a_turn_of_the_hue_keeps_the_luminance_and_moves_red_to_green() -> None:
    red = Image.new("RGB", (4, 4), (180, 60, 60))
    turned = colours(red, (1.0, 1.0, 1.0, 1 / 3, 0.0))[:, 0, 0]
    hue = colorsys.rgb_to_hsv(*turned.tolist())[0]
    assert min(abs(hue - 1 / 3), abs(hue - 2 / 3)) < 0.08
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert (turned @ luma).item() == pytest.approx((0.299 * 180 + 0.587 * 60 + 0.114 * 60) / 255, abs=1e-3)


def test_gray_has_three_equal_channels() -> None:
    got = colours(picture(8, 8), (1.0, 1.0, 1.0, 0.0, 1.0))
    assert (got - got[:1]).abs().max() < 1e-5


def test_untouched_colours_are_left_alone() -> None:
    image = picture(8, 8)
    assert (
        colours(image, PLAIN) * 255 - torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    ).abs().max() < 0.01


def test_weights_sum_to_one_and_stay_in_the_interval() -> None:
    weights = resample_weights(torch.tensor([2.0, 0.0]), torch.tensor([9.0, 12.0]), 12, 5)
    assert weights.shape == (2, 5, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
    assert not weights[0, :, :2].any()
    assert not weights[0, :, 9:].any()


def test_no_crop_of_a_picture_of_least_size_is_enlarged() -> None:
    kinds = [View(64), View(32, scale=(0.05, 0.3))]
    side = least_edge(kinds)
    for kind in kinds:
        for seed in range(200):
            ((left, top, right, bottom, *_),) = kind.draw((round(side), round(side)), random.Random(seed))
            assert min(right - left, bottom - top) > kind.size - 2


def test_probabilities() -> None:
    kind = View(8, 2000, flip=0.3, colour=0.6, strength=0.2, gray=0.1)
    drawn = torch.tensor(kind.draw((40, 30), random.Random(0)))
    changed = (drawn[:, 5:8] != 1).any(1)
    for values, share in ((drawn[:, 4], 0.3), (changed.float(), 0.6), (drawn[:, 9], 0.1)):
        assert abs(values.mean().item() - share) < 0.04
    assert drawn[:, 5:8].min() >= 0.8
    assert drawn[:, 5:8].max() <= 1.2
    assert 0.04 < drawn[:, 8].abs().max() <= 0.05


def test_the_central_view() -> None:
    assert central_view((50, 30))[:4] == (10, 0, 40, 30)


@pytest.mark.parametrize(
    ("pixels", "parameters", "message"),
    [
        (
            torch.zeros(1, 1, 3, 4, 4),
            torch.zeros(1, 1, 10),
            r"pixels: expected uint8 \[B, T, 3, H, W\], got torch.f",
        ),
        (BLACK, torch.zeros(2, 1, 10), r"parameters: expected \[1, V, 10\], got \[2, 1, 10\]"),
    ],
)
def test_wrong_tensors_are_named(pixels: torch.Tensor, parameters: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        views(pixels, parameters, 4)


@pytest.mark.gpu
def test_the_gpu_gives_the_same_views() -> None:
    pictures = [picture(60, 40, 1), picture(33, 50, 2)]
    view = View(16, 3, flip=0.5, colour=0.8, gray=0.2)
    parameters = torch.tensor([view.draw(image.size, random.Random(i)) for i, image in enumerate(pictures)])
    pixels = batch(pictures, 50, 60)
    torch.testing.assert_close(
        views(pixels.cuda(), parameters.cuda(), 16).cpu(), views(pixels, parameters, 16), rtol=1e-3, atol=1e-3
    )
