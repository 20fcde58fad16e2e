"""The Triton kernels: compiled on a GPU, through Triton's interpreter on the CPU (see tests/conftest.py)."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import barlow_twins_loss, covariance_loss, vicreg_loss
from jepa_fast.bench.measure import check_error
from jepa_fast.kernels.covariance import api

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bfloat16 is broken.
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE == "cuda" else ()))
LOSSES = (
    "covariance",
    "covariance_pairs",
    "variance",
    "vicreg",
    "vicreg_eb_jepa",
    "barlow",
    "barlow_unbiased",
)
# Gram and tiled form of one ragged block for every loss; several blocks, whole and ragged, of rows and of columns, and
# splits of the sum for those that use all kernels.
SMALL = ((5, 48), (40, 17))
LARGE = ((70, 140), (33, 600), (140, 70), (64, 64))
CASES = [
    *((shape, name, dtype) for shape in SMALL for name in LOSSES for dtype in DTYPES),
    *((shape, name, torch.float32) for shape in LARGE for name in ("vicreg", "barlow")),
    *((shape, name, dtype) for shape in LARGE[::2] for name in ("vicreg", "barlow") for dtype in DTYPES[1:]),
]
Check = Callable[..., None]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The interpreter's small steps cost more to spread than to take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def hold(evaluate, eager, oracle) -> Check:
    def check(name: str, views: tuple[Tensor, ...], **options: Any) -> None:
        views = tuple(view.to(DEVICE) for view in views)
        ours = evaluate(name, views, implementation="triton", **options)
        result = check_error(ours, eager(name, views), oracle(name, views))
        assert result.passed, result.reason

    return check


@pytest.mark.parametrize(("shape", "name", "dtype"), CASES)
def test_shapes_and_dtypes(draw, hold: Check, shape: tuple[int, int], name: str, dtype: torch.dtype) -> None:
    hold(name, draw(*shape, dtype))


@pytest.mark.parametrize("shape", [(40, 70), (70, 40)])
def test_large_common_offset_does_not_cancel(draw, hold: Check, shape: tuple[int, int]) -> None:
    for name in ("covariance", "variance", "vicreg"):
        hold(name, draw(*shape, mean=300.0))


@pytest.mark.parametrize("scale", [10.0, 1e4])
@pytest.mark.parametrize("count", [1, 5])
def test_features_that_outweigh_the_rest(draw, hold: Check, count: int, scale: float) -> None:
    # What the Gram form subtracts is dominated by few features: the products are formed again in float64.
    first, second = draw(48, 70)
    first[:, ::7][:, :count] *= scale
    for name in ("covariance", "vicreg"):
        hold(name, (first, second))


def test_layouts(draw, evaluate) -> None:
    first, second = (view.to(DEVICE) for view in draw(20, 48))
    wide = torch.zeros(20, 57, device=DEVICE)
    wide[:, 3:51] = first
    for name in ("vicreg", "barlow"):
        expected = evaluate(name, (first, second), implementation="triton")
        for layout in (wide[:, 3:51], first.T.contiguous().T, first.repeat_interleave(2, 0)[::2]):
            torch.testing.assert_close(evaluate(name, (layout, second), implementation="triton"), expected)


@pytest.mark.parametrize("shape", [(24, 48), (48, 24)])
def test_statistics(draw, shape: tuple[int, int]) -> None:
    views = tuple(view.to(DEVICE) for view in draw(*shape))
    for loss in (vicreg_loss, barlow_twins_loss):
        _, found = loss(*views, return_statistics=True, implementation="triton")
        _, expected = loss(*views, return_statistics=True, implementation="reference")
        torch.testing.assert_close(found, expected)
    _, found = covariance_loss(views[0], return_statistics=True, implementation="triton")
    assert found.effective_rank.shape == (1,)


@pytest.mark.parametrize("name", ["covariance", "variance", "vicreg", "barlow"])
@pytest.mark.parametrize("shape", [(6, 48), (48, 6)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
def test_what_is_not_finite_shows(draw, evaluate, name: str, shape: tuple[int, int], value: float) -> None:
    first, second = (view.to(DEVICE) for view in draw(*shape))
    first[3, 2] = value
    loss, *_ = evaluate(name, (first, second), implementation="triton")
    assert not loss.isfinite()


def test_constant_feature(draw, evaluate, oracle) -> None:
    for shape in ((6, 48), (48, 6)):
        first, second = (view.to(DEVICE) for view in draw(*shape))
        first[:, 2] = 0.5
        for name in LOSSES:
            found = evaluate(name, (first, second), implementation="triton")
            expected = [value.float() for value in oracle(name, (first, second))]
            torch.testing.assert_close(list(found), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["variance", "vicreg", "barlow"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(17, 48), (48, 17)])
def test_every_output_is_written(
    draw, evaluate, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], dtype: torch.dtype, name: str
) -> None:
    views = tuple(view.to(DEVICE) for view in draw(*shape, dtype))
    expected = evaluate(name, views, implementation="triton")
    empty = torch.empty

    def poisoned(*arguments: Any, **options: Any) -> Tensor:
        made = empty(*arguments, **options)
        return made.fill_(torch.nan if made.is_floating_point() else 0)

    monkeypatch.setattr(torch, "empty", poisoned)
    found = evaluate(name, views, implementation="triton")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_kernel_computes_what_has_no_weight(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    from jepa_fast.kernels.covariance import triton_covariance

    names = []
    original = triton_covariance.launch
    monkeypatch.setattr(
        triton_covariance, "launch", lambda c, *rest: names.append(c.family) or original(c, *rest)
    )
    first, second = (view.to(DEVICE).requires_grad_() for view in draw(8, 48))
    vicreg_loss(first, second, covariance=0.0, implementation="triton").backward()
    assert names == ["moments", "columns", "loss", "finish"]
    names.clear()
    with torch.no_grad():
        vicreg_loss(first.half(), second.half(), implementation="triton")
    assert names == ["moments", "columns", "matrix", "join", "loss"]
    assert api.OPERATION.name == "covariance"
