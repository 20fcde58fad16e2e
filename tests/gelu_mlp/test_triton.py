"""The Triton kernels: compiled on a GPU, through Triton's interpreter on the CPU (see tests/conftest.py)."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from jepa_fast import gelu_mlp
from jepa_fast.bench.measure import check_error
from jepa_fast.kernels.gelu_mlp import api

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bfloat16 is broken.
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE == "cuda" else ()))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 40, 144])
def test_error_budget(
    draw, with_gradients, published, oracle, hidden: int, dtype: torch.dtype, recompute: bool
) -> None:
    tensors, upstream = draw(3, 11, sizes=(12, hidden, 10), dtype=dtype)
    tensors, upstream = [tensor.to(DEVICE) for tensor in tensors], upstream.to(DEVICE)
    ours = with_gradients(partial(gelu_mlp, recompute=recompute, implementation="triton"), tensors, upstream)
    check = check_error(ours, with_gradients(published, tensors, upstream), oracle(tensors, upstream))
    assert check.passed, check.reason


@pytest.mark.parametrize("recompute", [False, True])
def test_sum_over_parts_of_the_rows(recompute: bool) -> None:
    triton = api.OPERATION.module("triton")
    generator = torch.Generator().manual_seed(0)
    # parts of 24 rows, three turns of 8, and the last one short
    grad, before = ((torch.randn(1100, 17, generator=generator) + 0.5).to(DEVICE) for _ in range(2))
    exact = torch.ops.aten.gelu_backward(grad.double(), before.double())
    eager = torch.ops.aten.gelu_backward(grad, before)
    after = F.gelu(before) if recompute else before.clone()
    sums = triton.gelu_backward_(grad, before, recompute)
    check = check_error([grad, sums], [eager, eager.sum(0)], [exact, exact.sum(0)])
    assert check.passed, check.reason
    torch.testing.assert_close(before, after)


def test_no_rows(draw, with_gradients) -> None:
    tensors, upstream = draw(0, 5)
    tensors, upstream = [tensor.to(DEVICE) for tensor in tensors], upstream.to(DEVICE)
    found = with_gradients(partial(gelu_mlp, implementation="triton"), tensors, upstream)
    assert all((gradient == 0).all() for gradient in found[2:])
