"""The classifiers on features that are known, and what they may look at."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from jepa_fast.probes.heads import (
    Part,
    Splits,
    accuracy,
    attentive_probe,
    linear_probe,
    logistic_regression,
    nearest_neighbours,
    pixel_baseline,
    principal_components,
)
from jepa_fast.probes.pictures import SIDE, feature_sheet

CLASSES = 3


def blobs(number: int, seed: int, *, noise: float = 0.3, dim: int = 6) -> Part:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, dim, generator=torch.Generator().manual_seed(99))
    y = torch.arange(number) % CLASSES
    return Part(centres[y] * 3 + noise * torch.randn(number, dim, generator=generator), y)


@pytest.fixture
def splits() -> Splits:
    return Splits(blobs(60, 0), blobs(30, 1), blobs(30, 2))


@pytest.fixture
def noise() -> Splits:
    """Features that say nothing about their labels."""
    parts = [blobs(90, seed) for seed in range(3)]
    return Splits(
        *(
            Part(torch.randn(90, 40, generator=torch.Generator().manual_seed(i)), p.y)
            for i, p in enumerate(parts)
        )
    )


def test_the_regression_is_at_the_optimum() -> None:
    part = blobs(60, 0, noise=2.0)
    layer = logistic_regression(part, CLASSES, 1e-2).requires_grad_(True)
    (F.cross_entropy(layer(part.x), part.y) + 1e-2 * layer.weight.square().sum()).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().max() < 1e-3


def test_what_can_be_separated_is(splits: Splits) -> None:
    for score in (linear_probe(splits, CLASSES), nearest_neighbours(splits, CLASSES, neighbours=5)):
        assert (score.train, score.val, score.test) == (1.0, 1.0, 1.0)


def test_noise_is_no_better_than_chance_on_the_test_part(noise: Splits) -> None:
    score = linear_probe(noise, CLASSES)
    assert abs(score.test - 1 / CLASSES) < 0.17  # three deviations of 90 samples
    assert abs(nearest_neighbours(noise, CLASSES).train - 1 / CLASSES) < 0.17  # not its own neighbour


def test_the_test_part_chooses_nothing(noise: Splits) -> None:
    other = Splits(noise.train, noise.val, Part(noise.test.x + 1, noise.test.y.flip(0)))
    assert linear_probe(noise, CLASSES).chosen == linear_probe(other, CLASSES).chosen


def test_features_of_any_scale() -> None:
    parts = (blobs(60, 0), blobs(30, 1), blobs(30, 2))
    scaled = Splits(*(Part(part.x * torch.logspace(-4, 4, 6) + 100, part.y) for part in parts))
    assert linear_probe(scaled, CLASSES).test == 1.0


def test_the_attentive_head_finds_the_token_that_tells() -> None:
    def part(number: int, seed: int) -> Part:
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(number) % CLASSES
        tokens = 0.3 * torch.randn(number, 9, 16, generator=generator)
        place = torch.randint(9, (number,), generator=generator)
        tokens[torch.arange(number), place] = 6 * torch.eye(CLASSES, 16)[y]
        return Part(tokens.half(), y)

    made = Splits(part(240, 0), part(60, 1), part(60, 2))
    options = {"epochs": 30, "device": torch.device("cpu")}
    score = attentive_probe(made, CLASSES, **options)  # type: ignore[arg-type]
    assert score.test > 0.8
    torch.rand(3)
    assert attentive_probe(made, CLASSES, **options) == score  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(20, 7), (7, 20)])
def test_principal_components_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, directions = principal_components(x, 4)
    _, _, expected = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
    torch.testing.assert_close(mean, x.mean(0))
    along = (directions.t() @ torch.from_numpy(expected[:4]).t()).abs()
    torch.testing.assert_close(along, torch.eye(4, dtype=x.dtype), atol=1e-6, rtol=0)


def test_the_pixel_baseline_sees_pixels(splits: Splits) -> None:
    assert pixel_baseline(splits, CLASSES).test == 1.0


def test_no_samples_give_nan() -> None:
    assert math.isnan(accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)))


def test_a_sheet_of_features(tmp_path: Path) -> None:
    pixels, tokens = torch.zeros(3, 3, 16, 16), torch.zeros(3, 4, 8)
    tokens[:, 0, 0] = 1.0  # the upper left patch of every picture is different
    feature_sheet(pixels, tokens, tmp_path / "sub" / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sub" / "sheet.png"))
    assert sheet.shape == (2 * SIDE, 3 * SIDE, 3)
    assert abs(int(sheet[10, 10, 0]) - round(0.485 * 255)) <= 1
    below = sheet[SIDE:]
    assert (below[10, 10] != below[10, SIDE - 10]).any()
    assert (below[10, SIDE - 10] == below[SIDE - 10, 10]).all()


def test_tokens_that_are_no_square_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokens: expected a square grid, got 5"):
        feature_sheet(torch.zeros(1, 3, 8, 8), torch.zeros(1, 5, 4), tmp_path / "a.png")
