"""The Triton kernels: compiled on a GPU, through Triton's interpreter on the CPU (see tests/conftest.py)."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from jepa_fast import sigreg_loss
from jepa_fast.bench.measure import check_error
from jepa_fast.kernels.sigreg.settings import VARIANTS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bfloat16 is broken.
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE == "cuda" else ()))
Check = Callable[..., None]


@pytest.fixture(autouse=True)
def full_float32():
    from jepa_fast.bench.measure.float32 import full_float32 as full

    with full():
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The interpreter's small steps cost more to spread than to take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The interpreter takes a row at a time; 64 rows are a block.
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(((9, 5), dtype) for dtype in DTYPES),
        *((shape, torch.float32) for shape in ((2, 8), (66, 24), (2, 7, 12))),
    ],
)
def test_shapes_and_dtypes(draw, columns, hold: Check, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    hold("triton", draw(*shape, dtype=dtype).to(DEVICE), columns(shape[-1], 40).to(DEVICE))


@pytest.mark.parametrize("slices", [1, 128, 130])
def test_slices(draw, columns, hold: Check, slices: int) -> None:
    hold("triton", draw(8, 24).to(DEVICE), columns(24, slices).to(DEVICE))


# 1 to 16 multiples of the first phase in one launch, more in several.
@pytest.mark.parametrize("knots", [2, 4, 6, 7, 11, 12, 16, 17, 18, 41])
def test_knots(draw, columns, hold: Check, knots: int) -> None:
    hold("triton", draw(8, 8).to(DEVICE), columns(8, 20).to(DEVICE), num_knots=knots)


@pytest.mark.parametrize("scale", [0.1, 10.0, 1e3])
def test_scales_of_the_input(draw, columns, hold: Check, scale: float) -> None:
    hold("triton", (scale * draw(8, 8)).to(DEVICE), columns(8, 20).to(DEVICE))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant(draw, with_gradient, variant: str) -> None:
    x = draw(2, 5, 12).to(DEVICE)
    options = {"variant": variant, "num_slices": 24, "seed": 3}
    loss, gradient = with_gradient(lambda y: sigreg_loss(y, implementation="triton", **options), x)
    true, expected = with_gradient(
        lambda y: sigreg_loss(y, implementation="reference", **options), x.double()
    )
    torch.testing.assert_close(loss.double(), true, rtol=3e-6, atol=0)
    torch.testing.assert_close(
        gradient.double(), expected, rtol=1e-4, atol=3e-6 * expected.abs().max().item()
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows(draw, with_gradient, value: float) -> None:
    x = draw(10, 8).to(DEVICE)
    x[3, 2] = value
    loss, gradient = with_gradient(lambda y: sigreg_loss(y, num_slices=32, implementation="triton"), x)
    assert loss.isnan()
    assert gradient.isnan().any()


@pytest.mark.parametrize("value", [1e10, 1e30])
def test_huge_values_keep_the_loss_within_its_bounds(draw, with_gradient, value: float) -> None:
    x = draw(10, 8).to(DEVICE)
    x[3] = value
    loss, gradient = with_gradient(lambda y: sigreg_loss(y, num_slices=32, implementation="triton"), x)
    assert 0.0 <= loss <= 10 * 10.0  # |c - phi|^2 is at most 4, the weights add up to 2.5
    assert gradient.isfinite().all()


def test_second_backward_and_repeated_calls_are_bit_equal(draw) -> None:
    x = draw(8, 8).to(DEVICE).requires_grad_()
    losses = [sigreg_loss(x, num_slices=40, seed=2, implementation="triton") for _ in range(2)]
    assert torch.equal(*losses)
    gradients: list[Tensor] = [
        torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (*losses, losses[0])
    ]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_views_sum_to_the_mean_of_single_ones(draw, columns, with_gradient) -> None:
    x, directions = draw(3, 6, 8).to(DEVICE), columns(8, 20).to(DEVICE)
    together = with_gradient(lambda y: sigreg_loss(y, directions=directions, implementation="triton"), x)
    single = [
        with_gradient(lambda y: sigreg_loss(y, directions=directions, implementation="triton"), view)
        for view in x
    ]
    mean = torch.stack([loss for loss, _ in single]).mean()
    gradient = torch.stack([each / 3 for _, each in single])
    exact = with_gradient(lambda y: sigreg_loss(y, directions=directions.double()), x.double())
    assert check_error(together, (mean, gradient), exact).passed


def test_every_output_is_written_and_nothing_else(draw, poisoned_memory: Callable[..., None]) -> None:
    poisoned_memory("triton", draw(2, 5, 6).to(DEVICE), num_slices=37)
