"""The native kernels against float64, with the error budget of the design."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast import gelu_mlp
from jepa_fast.bench.measure import check_error
from jepa_fast.kernels.gelu_mlp import api

pytestmark = pytest.mark.native
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CANARY = 77.0


@pytest.fixture
def native() -> object:
    return api.OPERATION.module("native")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 15, 40, 100, 384])
def test_error_budget(
    draw, with_gradients, published, oracle, hidden: int, dtype: torch.dtype, recompute: bool
) -> None:
    tensors, upstream = draw(3, 11, sizes=(12, hidden, 10), dtype=dtype)
    ours = with_gradients(partial(gelu_mlp, recompute=recompute, implementation="native"), tensors, upstream)
    check = check_error(ours, with_gradients(published, tensors, upstream), oracle(tensors, upstream))
    assert check.passed, check.reason


@pytest.mark.parametrize("bounds", [(-0.01, 0.01), (-1, 1), (-6, 6), (-40, 40), (-1e4, 1e4)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_argument(native, dtype: torch.dtype, bounds: tuple[float, float]) -> None:
    x = torch.linspace(*bounds, 100_003).to(dtype)
    exact = x.double().requires_grad_()
    true = F.gelu(exact)
    leaf = x.clone().requires_grad_()
    eager = F.gelu(leaf)
    check = check_error([native.gelu(x)], [eager.detach()], [true.detach()])
    assert check.passed, check.reason
    slope = torch.ones(1, x.numel(), dtype=dtype)
    after = x.clone()[None]
    sums = native.gelu_backward_(slope, after, True)
    slopes = [torch.autograd.grad(y.sum(), z)[0][None] for y, z in ((eager, leaf), (true, exact))]
    check = check_error([slope, after], [slopes[0], eager.detach()[None]], [slopes[1], true.detach()[None]])
    assert check.passed, check.reason
    torch.testing.assert_close(sums.to(dtype), slope[0], rtol=0, atol=0)


def test_small_and_huge_arguments(native) -> None:
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-8, 1e30, -1e30, 20.0, -20.0])
    torch.testing.assert_close(native.gelu(x), F.gelu(x), rtol=1e-6, atol=1e-30)
    assert native.gelu(torch.tensor([torch.nan])).isnan()
    assert native.gelu(torch.tensor([torch.inf])).isinf()
    grad, before = torch.ones(1, 3), torch.tensor([[torch.nan, 1.0, torch.inf]])
    sums = native.gelu_backward_(grad, before, True)
    assert grad[0].isfinite().tolist() == sums.isfinite().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_over_many_rows(native, dtype: torch.dtype) -> None:
    # More rows than 64 parts of 16 hold, the last part short.
    generator = torch.Generator().manual_seed(0)
    grad, before = ((torch.randn(2051, 33, generator=generator) + 0.5).to(dtype) for _ in range(2))
    wide = (
        grad.double()
        * torch.autograd.functional.jvp(F.gelu, before.double(), torch.ones(2051, 33).double())[1]
    )
    eager = torch.ops.aten.gelu_backward(grad.float(), before.float()).sum(0)
    check = check_error([native.gelu_backward_(grad, before, False)], [eager], [wide.sum(0)])
    assert check.passed, check.reason


def test_same_bits_whatever_the_threads(native) -> None:
    grad, before = torch.randn(700, 96), torch.randn(700, 96)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            mine, own = grad.clone(), before.clone()
            found.append((native.gelu_backward_(mine, own, True), mine, own, native.gelu(before)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 15, 33])
def test_nothing_else_is_written(native, features: int, dtype: torch.dtype) -> None:
    def room() -> tuple[Tensor, Tensor]:
        whole = torch.full((5 * features + 32,), CANARY, dtype=dtype)
        inner = whole[16:-16].view(5, features)
        inner.normal_()
        return whole, inner

    wholes, inners = zip(*(room() for _ in range(3)), strict=True)
    expected = F.gelu(inners[1])
    native.gelu(inners[1], inners[2])
    native.gelu_backward_(inners[0], inners[1], True)
    for whole in wholes:
        assert (whole[:16] == CANARY).all()
        assert (whole[-16:] == CANARY).all()
    for inner in inners[1:]:  # equal but for roundings: in half precision one of them is PyTorch's
        torch.testing.assert_close(inner, expected)
