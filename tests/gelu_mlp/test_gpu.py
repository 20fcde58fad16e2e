"""What only a GPU can show of `gelu_mlp`; test_triton.py runs its numerics there, too."""

from functools import partial

import pytest
import torch

from jepa_fast import explain, gelu_mlp
from jepa_fast.bench.measure import check_error

pytestmark = pytest.mark.gpu
SIZES = (384, 1536, 384)


def test_triton_is_chosen(draw) -> None:
    tensors, _ = draw(2, 5)
    assert explain("gelu_mlp", *(tensor.cuda() for tensor in tensors)).chosen == "triton"


@pytest.mark.parametrize("recompute", [False, True])
def test_no_synchronisation_and_deterministic_bias_gradient(draw, with_gradients, recompute: bool) -> None:
    tensors, upstream = draw(4, 256, sizes=SIZES, dtype=torch.bfloat16)
    tensors, upstream = [tensor.cuda() for tensor in tensors], upstream.cuda()
    run = partial(with_gradients, partial(gelu_mlp, recompute=recompute), tensors, upstream)
    first = run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first[3], again[3])


def test_error_budget_at_a_published_width(draw, with_gradients, published, oracle) -> None:
    tensors, upstream = draw(16, 257, sizes=SIZES, dtype=torch.bfloat16)
    tensors, upstream = [tensor.cuda() for tensor in tensors], upstream.cuda()
    theirs = with_gradients(published, tensors, upstream)
    for recompute in (False, True):
        ours = with_gradients(partial(gelu_mlp, recompute=recompute), tensors, upstream)
        check = check_error(ours, theirs, oracle(tensors, upstream))
        assert check.passed, check.reason
