"""The geometry and statistics of the published crop, and the normalisation."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jepa_fast.data import IMAGENET_MEAN, IMAGENET_STD, normalize, random_crop_box
from jepa_fast.data.crops import resized_crop


@settings(max_examples=300, deadline=None)
@given(width=st.integers(1, 2000), height=st.integers(1, 2000), seed=st.integers(0, 1000))
def test_a_box_is_inside_the_image(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = random_crop_box((width, height), random.Random(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def boxes(size: tuple[int, int], number: int, **options: Any) -> np.ndarray:
    rng = random.Random(0)
    return np.array([random_crop_box(size, rng, **options) for _ in range(number)]).T


def test_area_is_uniform_and_shape_log_uniform() -> None:
    left, top, right, bottom = boxes((3000, 3000), 4000, scale=(0.1, 0.3))
    area = (right - left) * (bottom - top) / 9e6
    shape = np.log((right - left) / (bottom - top)) / math.log(4 / 3)
    for values, low, high in ((area, 0.1, 0.3), (shape, -1, 1)):
        deciles = np.quantile(values, np.linspace(0, 1, 11))
        assert np.allclose(deciles, np.linspace(low, high, 11), atol=0.03 * (high - low))


def test_position_is_uniform() -> None:
    left, top, right, bottom = boxes((800, 600), 4000)
    for place, room in ((left, 800 - (right - left)), (top, 600 - (bottom - top))):
        free = room > 50
        assert np.allclose(
            np.quantile(place[free] / room[free], [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.04
        )


@pytest.mark.parametrize(
    ("size", "box"), [((1, 1), (0, 0, 1, 1)), ((900, 30), (430, 0, 470, 30)), ((30, 900), (0, 430, 30, 470))]
)
def test_where_no_box_fits_it_is_the_central_one(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert random_crop_box(size, random.Random(0), scale=(0.9, 1.0)) == box


def test_a_crop_reads_nothing_outside_of_its_box() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48, 16:48] = 255
    assert (resized_crop(Image.fromarray(pixels), (16, 16, 48, 48), 11) == 255).all()


def test_a_crop_of_the_same_size_is_a_copy() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    crop = resized_crop(Image.fromarray(pixels), (3, 2, 19, 18), 16)
    assert torch.equal(crop, torch.from_numpy(pixels[2:18, 3:19].copy()).permute(2, 0, 1))


def test_normalize() -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=torch.float64).view(3, 1, 1)
    normalized = normalize(pixels)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(
        normalized.double(), (pixels.double() / 255 - mean) / std, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("pixels", [torch.zeros(3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)])
def test_normalize_names_what_it_got(pixels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"pixels: expected uint8 \[\.\.\., 3, H, W\], got"):
        normalize(pixels)
