"""The Triton kernels: compiled on a GPU, through Triton's interpreter on the CPU (see tests/conftest.py)."""

import itertools

import pytest
import torch

from jepa_fast import explain

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bfloat16 is broken.
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE == "cuda" else ()))
TRIPLES = [d for d in itertools.product(DTYPES, repeat=3) if not {torch.float16, torch.bfloat16} <= set(d)]
OPTIONS = ("update_bias", "layer_scale", "drop_path")
MIXED = (torch.float16, torch.float32, torch.float16)


@pytest.fixture
def hold_triton(hold):
    return lambda inputs: hold(inputs.map(lambda tensor: tensor.to(DEVICE)), "triton")


@pytest.mark.parametrize("dtypes", TRIPLES, ids=str)
def test_dtypes(draw, hold_triton, dtypes: tuple[torch.dtype, ...]) -> None:
    hold_triton(draw(2, 33, 40, dtypes=dtypes))
    hold_triton(draw(2, 33, 40, dtypes=dtypes, options=OPTIONS, stream=False))
    hold_triton(draw(2, 33, 40, dtypes=dtypes, add=False))


@pytest.mark.parametrize("features", [1, 65, 192, 384, 1408, 4096])  # 1408: one row a program
def test_widths(draw, hold_triton, features: int) -> None:
    hold_triton(draw(2, 9, features, dtypes=MIXED))


@pytest.mark.parametrize(
    "options", [names for n in range(4) for names in itertools.combinations(OPTIONS, n)], ids=str
)
def test_options(draw, hold_triton, options: tuple[str, ...]) -> None:
    hold_triton(draw(3, 4, 48, dtypes=MIXED, options=options))
    hold_triton(draw(3, 4, 48, options=options))


def test_more_rows_than_programs_hold(draw, hold_triton) -> None:
    # 64 rows of 64 features in a group, 3 programs: 7 groups, so that a program has three, two or two of them.
    hold_triton(draw(1, 7 * 64 - 5, 48, options=("layer_scale",)))


def test_layouts(draw, results, hold_triton) -> None:
    def view(x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 1:
            return x
        room = torch.zeros(4, 9, 50, dtype=x.dtype)
        inner = room[1:3, 2:7, 3:43]  # not aligned, with gaps
        return inner.copy_(x)

    inputs = draw(2, 5, 40, options=("layer_scale",))
    hold_triton(inputs.map(view))
    hold_triton(inputs.map(lambda x: x if x.ndim == 1 else x.mT.contiguous().mT))


def test_large_common_offset_does_not_cancel(draw, hold_triton) -> None:
    hold_triton(draw(2, 5, 384, mean=1e3))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_spoils_its_row_alone(draw, results, value: float) -> None:
    inputs = draw(2, 5, 40).map(lambda tensor: tensor.to(DEVICE))
    inputs.x[1, 2, 3] = value
    normalized, new, grad_residual, grad_weight, _, grad_x = results(inputs, "triton")
    assert new[1, 2].isfinite().sum() == 39
    for tensor in (normalized, grad_residual, grad_x):
        assert tensor.isnan().all(-1).nonzero().tolist() == [[1, 2]]
        assert tensor.isnan().any(-1).nonzero().tolist() == [[1, 2]]
    assert grad_weight.isnan().all()


def test_no_rows(draw, results) -> None:
    found = results(draw(2, 0, 40).map(lambda tensor: tensor.to(DEVICE)), "triton")
    assert all((tensor == 0).all() for tensor in found)


def test_refusals() -> None:
    low = torch.zeros(2, 3, 8, dtype=torch.bfloat16, device=DEVICE)
    vectors = torch.ones(8, device=DEVICE), torch.ones(8, device=DEVICE)
    refusals = explain("layer_norm", low, low, *vectors, dtype=torch.float16).refusals
    assert "float16 and bfloat16 are mixed" in str(refusals.get("triton"))
    wide = torch.zeros(1, 4097, device=DEVICE)
    refusals = explain("layer_norm", wide, wide[0], wide[0]).refusals
    assert "at most 4096" in str(refusals.get("triton"))
