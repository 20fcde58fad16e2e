"""What only a GPU can show of `add_layer_norm`; test_triton.py runs its numerics there, too."""

import pytest
import torch
from torch import Tensor

from jepa_fast import add_layer_norm, explain
from jepa_fast.bench.measure import peak_memory

pytestmark = pytest.mark.gpu
LOW = (torch.bfloat16,) * 3


def leaves(inputs) -> list[Tensor]:
    tensors = (inputs.x, inputs.residual, inputs.weight, inputs.bias)
    return [tensor.cuda().requires_grad_() for tensor in tensors]


def everything(tensors: list[Tensor], upstream) -> list[Tensor]:
    outputs = add_layer_norm(*tensors)
    return [*outputs, *torch.autograd.grad(outputs, tensors, [gradient.cuda() for gradient in upstream])]


def test_triton_is_chosen(draw) -> None:
    assert explain("layer_norm", *leaves(draw(2, 5, 384, dtypes=LOW))).chosen == "triton"


def test_runs_on_the_current_stream(draw) -> None:
    x, *rest = leaves(draw(4, 64, 384))
    expected = add_layer_norm(x + 1, *rest)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        torch.cuda._sleep(20_000_000)  # a kernel on another stream would overtake the addition
        x.add_(1)
        found = add_layer_norm(x, *rest)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_captured_graph_reads_inputs_anew(draw) -> None:
    inputs = draw(4, 64, 384, dtypes=LOW)
    tensors, upstream = leaves(inputs), [gradient.cuda() for gradient in inputs.upstream]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, as PyTorch asks before a capture
        everything(tensors, upstream)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = everything(tensors, upstream)
    for seed in (1, 2):
        new = leaves(draw(4, 64, 384, dtypes=LOW, seed=seed))
        with torch.no_grad():
            for old, value in zip(tensors, new, strict=True):
                old.copy_(value)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, everything(new, upstream), strict=True))


def test_no_synchronisation(draw) -> None:
    inputs = draw(4, 64, 384, dtypes=LOW)
    tensors, upstream = leaves(inputs), [gradient.cuda() for gradient in inputs.upstream]
    everything(tensors, upstream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything(tensors, upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("width", [192, 384, 1024, 1280, 1408, 1664])
def test_deterministic(draw, width: int) -> None:
    inputs = draw(8, 1000, width, dtypes=LOW)
    first = everything(leaves(inputs), inputs.upstream)
    for _ in range(5):
        again = everything(leaves(inputs), inputs.upstream)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@pytest.mark.parametrize("width", [384, 1280])
def test_error_budget_over_many_rows(draw, hold, width: int) -> None:
    inputs = draw(16, 1025, width, dtypes=(torch.bfloat16, torch.float32, torch.bfloat16))
    hold(inputs.map(lambda tensor: tensor.cuda()), "triton")


def test_extra_memory() -> None:
    x, residual = (torch.randn(8192, 1024, device="cuda").bfloat16().requires_grad_() for _ in range(2))
    vectors = [torch.ones(1024, device="cuda", requires_grad=True) for _ in range(2)]
    upstream = [torch.randn_like(x) for _ in range(2)]
    one = x.numel() * 2
    peak = peak_memory(lambda: everything([x, residual, *vectors], upstream), "cuda")
    assert peak <= 3.4 * one  # normalized, new_residual and one gradient; statistics and partial sums
