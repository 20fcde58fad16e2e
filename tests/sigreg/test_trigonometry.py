"""The polynomials' sine and cosine, in C++ and in Triton."""

import math
import platform

import pytest
import torch
from torch import Tensor

from jepa_fast.kernels.runtime import native as library
from jepa_fast.kernels.sigreg import native
from jepa_fast.kernels.sigreg.quadrature import quadrature
from jepa_fast.kernels.sigreg.settings import Settings

TURNS = (3.0 / 16) / (2.0 * math.pi)  # of the default quadrature, per unit
BOUND = 1.2e-7  # two units in the last place of 1
fused = pytest.mark.skipif(
    platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="this CPU has no fused multiply-add: large phases are as exact as PyTorch's float32 ones",
)


def rotations(values: Tensor, turns: float) -> Tensor:
    cosine, sine = torch.empty_like(values), torch.empty_like(values)
    library.function("sigreg_rotation")(values, cosine, sine, turns)
    return torch.stack([cosine, sine]).double()


def exact(values: Tensor, turns: float) -> Tensor:
    phases = values.double() * (2.0 * math.pi * turns)
    return torch.stack([phases.cos(), phases.sin()])


@pytest.mark.native
@pytest.mark.parametrize(
    "span", [1e-6, 1.0, 10.0, pytest.param(1e3, marks=fused), pytest.param(1e5, marks=fused)]
)
def test_error_bound(span: float) -> None:
    values = (2 * torch.rand(1_000_003, generator=torch.Generator().manual_seed(0)) - 1) * span
    for turns in (TURNS, 0.02, 1.0):
        assert (rotations(values, turns) - exact(values, turns)).abs().max() < BOUND


@pytest.mark.native
def test_quarter_turns() -> None:
    values = torch.arange(-4000.0, 4001.0)
    for turns in (0.25, 0.125):  # exact in float32, and so are all products
        assert (rotations(values, turns) - exact(values, turns)).abs().max() < BOUND


@pytest.mark.native
def test_small_phases_are_exact_to_the_last_places() -> None:
    # The sums over the rows average rounding out, but not a common factor.
    values = torch.logspace(-8, -1, 100_000)
    sine = rotations(values, TURNS)[1]
    assert ((sine / exact(values, TURNS)[1] - 1).abs() < 2 * torch.finfo(torch.float32).eps).all()
    assert (sine / exact(values, TURNS)[1] - 1).mean().abs() < 2e-8


@fused
@pytest.mark.native
def test_large_phases_lose_2_to_the_minus_47_of_their_size() -> None:
    values = torch.logspace(5, 12, 200_000)
    error = (rotations(values, TURNS) - exact(values, TURNS)).abs().amax(0)
    phases = values.double() * (2.0 * math.pi * TURNS)
    assert (error < BOUND + phases * 2.0**-46).all()


@pytest.mark.native
def test_huge_and_not_finite() -> None:
    huge = torch.tensor([1e15, -1e20, 1e30, -5e37])
    for turns in (TURNS, 1.0):
        found = rotations(huge, turns)
        torch.testing.assert_close(
            found.square().sum(0), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6
        )
    broken = torch.tensor([math.nan, math.inf, -math.inf])
    assert rotations(broken, TURNS).isnan().all()


@fused
@pytest.mark.native
@pytest.mark.parametrize("rows", [1, 31, 100])
def test_a_far_row_among_near_ones(rows: int) -> None:
    # One row beyond the reach of the short reduction sends the rows with it the longer way.
    kernels, rule = native._Kernels(), quadrature(Settings("lejepa", 16, 17, 3.0, 1, False), rows)
    projections = torch.randn(1, rows, 16, generator=torch.Generator().manual_seed(0))
    projections[0, rows // 2, ::3] = -3e8
    multiples = torch.arange(1, rule.multiples + 1, dtype=torch.float64)
    phases = projections[0].double() * (2.0 * math.pi * rule.turns) * multiples[:, None, None]
    waves = torch.stack([phases.cos(), phases.sin()])
    sums = kernels.sums(projections, rule).double().sum(0)[:, 0]
    torch.testing.assert_close(sums, waves.sum(2), rtol=0, atol=1e-5 * rows)
    differences = torch.randn(2, 1, rule.multiples, 16, generator=torch.Generator().manual_seed(1))
    slopes = kernels.slopes(projections.clone(), differences, rule)
    weighted = differences[1].double() * waves[0].transpose(0, 1) - differences[0].double() * waves[
        1
    ].transpose(0, 1)
    torch.testing.assert_close(slopes[0].double(), weighted.sum(1), rtol=0, atol=1e-4)
