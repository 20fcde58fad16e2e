"""The native kernels against the float64 reference, with the error budget of the design."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast import sigreg_loss
from jepa_fast.bench.measure import check_error
from jepa_fast.kernels.sigreg import native
from jepa_fast.kernels.sigreg.quadrature import quadrature
from jepa_fast.kernels.sigreg.settings import Settings

pytestmark = pytest.mark.native
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Check = Callable[..., None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(2, 8), (40, 2), (3, 5), (31, 16), (33, 24), (257, 33), (600, 128), (3, 40, 20), (2, 2, 50, 100)],
)
def test_shapes_and_dtypes(draw, columns, hold: Check, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    hold("native", draw(*shape, dtype=dtype), columns(shape[-1], 100))


@pytest.mark.parametrize("slices", [1, 15, 16, 17, 64, 257])
def test_slices(draw, columns, hold: Check, slices: int) -> None:
    hold("native", draw(100, 24), columns(24, slices))


# Multiples of the first phase: none but a tail, groups of five, and both.
@pytest.mark.parametrize("knots", [2, 3, 4, 5, 6, 7, 8, 11, 12, 16, 17, 18, 33, 41, 65])
def test_knots(draw, columns, hold: Check, knots: int) -> None:
    hold("native", draw(300, 24), columns(24, 60), num_knots=knots)


@pytest.mark.parametrize("t_max", [0.5, 1.0, 5.0])
def test_range_of_the_knots(draw, columns, hold: Check, t_max: float) -> None:
    hold("native", draw(300, 24), columns(24, 60), t_max=t_max)


@pytest.mark.parametrize("scale", [1e-6, 0.1, 10.0, 1e3, 1e6])
def test_scales_of_the_input(draw, columns, hold: Check, scale: float) -> None:
    hold("native", scale * draw(300, 24), columns(24, 60))


@pytest.mark.parametrize("mean", [3.0, 100.0])
def test_large_common_offset(draw, columns, hold: Check, mean: float) -> None:
    hold("native", draw(300, 24) + mean, columns(24, 60))


@pytest.mark.parametrize("value", [1e10, 1e30, 3e38])
def test_huge_values_keep_the_loss_within_its_bounds(draw, with_gradient, value: float) -> None:
    x = draw(64, 8)
    x[3] = value / 8
    loss, gradient = with_gradient(lambda y: sigreg_loss(y, num_slices=64, implementation="native"), x)
    # |c - phi|^2 is at most 4, the weights add up to 2.5.
    assert 0.0 <= loss <= 64 * 10.0
    assert gradient.isfinite().all()


def parts(x: Tensor, knots: int = 17) -> tuple[Tensor, Tensor]:
    """Sums and slopes of the kernels themselves: the matrix products are PyTorch's."""
    kernels = native._Kernels()
    rule = quadrature(Settings("lejepa", x.shape[2], knots, 3.0, 1, False), x.shape[1])
    sums = kernels.sums(x, rule)
    differences = sums.sum(0).div(x.shape[1])
    return sums, kernels.slopes(x.clone(), differences, rule)


@pytest.mark.parametrize("shape", [(1, 2000, 40), (3, 300, 33)])
def test_deterministic_whatever_the_threads(draw, shape: tuple[int, int, int]) -> None:
    projections = draw(*shape)
    expected = parts(projections)
    before = torch.get_num_threads()
    try:
        for repeat in range(6):
            torch.set_num_threads(1 + repeat % 3)
            for found, true in zip(parts(projections), expected, strict=True):
                assert torch.equal(found, true)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 256, 257, 2048])
def test_sums_are_as_exact_as_the_published_means(draw, rows: int) -> None:
    projections = draw(1, rows, 64)
    sums, _ = parts(projections)
    t = torch.arange(1, 17) * (3.0 / 16)
    phases = projections[0].unsqueeze(-1) * t
    theirs = torch.stack([phases.cos().mean(0), phases.sin().mean(0)])
    exact_phases = projections[0].double().unsqueeze(-1) * t.double()
    exact = torch.stack([exact_phases.cos().mean(0), exact_phases.sin().mean(0)])
    ours = sums.sum(0, dtype=torch.float64).div(rows).float()[:, 0].transpose(1, 2)
    assert check_error([ours], [theirs], [exact]).passed


@pytest.mark.parametrize("variant", ["lejepa", "eb_jepa"])
@pytest.mark.parametrize("shape", [(40, 8), (2, 33, 24)])
def test_every_output_is_written_and_nothing_else(
    draw, poisoned_memory: Callable[..., None], shape: tuple[int, ...], variant: str
) -> None:
    poisoned_memory("native", draw(*shape), variant=variant, num_slices=37)
