"""Directions: the generator, the same numbers from every implementation, and their distribution."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast.kernels.sigreg import philox
from jepa_fast.kernels.sigreg.api import OPERATION

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Known answers that come with the authors' Random123 library: counter, key, result.
ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEEDS = (0, 1, -1, 12345678901234, -(2**63), 2**63 - 1)


@pytest.mark.parametrize(("counter", "key", "expected"), ANSWERS)
def test_philox_gives_the_known_answers(counter, key, expected) -> None:
    words = tuple(torch.tensor([word]) for word in counter)
    joined = key[1] << 32 | key[0]
    signed = joined - 2**64 if joined >= 2**63 else joined
    found = philox.philox(words, torch.tensor(signed))
    assert tuple(int(word) for word in found) == expected


def reference(seed: int, features: int, slices: int) -> Tensor:
    return philox.directions(seed, features, slices, torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=pytest.mark.native), "triton"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 16), (129, 33), (16, 1024)])
def test_kernels_draw_the_same(implementation: str, size: tuple[int, int]) -> None:
    kernels = OPERATION.module(implementation)._Kernels()
    device = torch.device(DEVICE if implementation == "triton" else "cpu")
    for seed in SEEDS if size == (3, 5) else (7,):
        found = kernels.directions(seed, *size, torch.zeros((), device=device)).cpu()
        assert found.dtype == torch.float32
        assert (found.double() - reference(seed, *size)).abs().max() < 4e-7


@pytest.mark.native
def test_native_draws_the_same_whatever_the_threads() -> None:
    kernels = OPERATION.module("native")._Kernels()
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(kernels.directions(3, 200, 333, torch.zeros(())))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_columns_are_of_length_1_and_the_reference_agrees_in_every_dtype() -> None:
    drawn = reference(5, 37, 50)
    torch.testing.assert_close(drawn.norm(dim=0), torch.ones(50, dtype=torch.float64))
    single = philox.directions(5, 37, 50, torch.zeros(()))
    assert torch.equal(single, drawn.float())


@pytest.fixture
def draws() -> Callable[[int], Tensor]:
    return lambda features: reference(11, features, 100_000 // features)


def test_uniform_on_the_sphere(draws) -> None:
    for features in (3, 64):
        drawn = draws(features)
        count = drawn.shape[1]
        # Mean 0, covariance 1 / D, each within five of its standard deviations.
        assert drawn.mean(1).abs().max() < 5.0 / (features * count) ** 0.5
        covariance = drawn @ drawn.T / count * features
        spread = (covariance - torch.eye(features, dtype=torch.float64)).abs().max()
        assert spread < 5.0 * (2.0 / count) ** 0.5


def test_elements_of_long_columns_are_gaussian() -> None:
    features = 4096
    values = (reference(2, features, 50) * features**0.5).flatten()
    t = torch.linspace(0.25, 3.0, 12, dtype=torch.float64)
    phases = values * t[:, None]
    deviation = values.numel() ** -0.5
    assert (phases.cos().mean(1) - torch.exp(-t.square() / 2)).abs().max() < 5 * deviation
    assert phases.sin().mean(1).abs().max() < 5 * deviation


def test_seeds_are_independent() -> None:
    first, second = reference(1, 64, 200), reference(2, 64, 200)
    cosines = (first * second).sum(0) * 64**0.5
    assert cosines.abs().max() < 6.0
    assert cosines.mean().abs() < 5.0 / 200**0.5


def test_a_wider_draw_is_another_one_but_a_longer_one_shares_its_counters() -> None:
    # Counters are (d // 4) * M + m: stated in philox.py, so a change of it is a change of every training run.
    drawn = reference(9, 8, 6)
    assert not torch.allclose(drawn[:, :3], reference(9, 8, 3))
    longer = reference(9, 12, 6)[:8]
    torch.testing.assert_close(longer / longer.norm(dim=0), drawn)
