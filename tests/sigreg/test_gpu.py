"""What only a GPU can show of `sigreg_loss`; test_triton.py runs its numerics there, too."""

import pytest
import torch

from jepa_fast import explain, sigreg_loss
from jepa_fast.bench.baselines.sigreg import sigreg
from jepa_fast.bench.measure import check_error, peak_memory

pytestmark = pytest.mark.gpu


def test_triton_is_chosen(draw) -> None:
    assert explain("sigreg", draw(10, 8).cuda()).chosen == "triton"


def test_the_cpu_computes_the_same(draw, with_gradient) -> None:
    x = draw(300, 64)
    loss, gradient = with_gradient(lambda y: sigreg_loss(y, seed=11), x)
    on_gpu, gradient_on_gpu = with_gradient(lambda y: sigreg_loss(y, seed=11), x.cuda())
    torch.testing.assert_close(on_gpu.cpu(), loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient_on_gpu.cpu(), gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_against_autocast(draw, columns, with_gradient, dtype: torch.dtype) -> None:
    x, directions = draw(1000, 128, dtype=dtype).cuda(), columns(128, 256).cuda()

    def published(y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=dtype):
            return sigreg(y, directions)

    ours = with_gradient(lambda y: sigreg_loss(y, directions=directions), x)
    theirs = with_gradient(published, x)
    exact = with_gradient(lambda y: sigreg_loss(y, directions=directions.double()), x.double())
    assert check_error(ours, theirs, exact).passed


def test_runs_on_the_current_stream(draw) -> None:
    x = draw(300, 64).cuda()
    expected = sigreg_loss(x + 1)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # a kernel on another stream would overtake the addition
        x.add_(1)
        loss = sigreg_loss(x)
    stream.synchronize()
    assert torch.equal(loss, expected)


def test_captured_graph_reads_inputs_and_seed_anew(draw) -> None:
    x = draw(300, 64).cuda().requires_grad_()
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, as PyTorch asks before a capture
        sigreg_loss(x, seed=step).backward()
    torch.cuda.current_stream().wait_stream(side)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = sigreg_loss(x, seed=step)
        (gradient,) = torch.autograd.grad(loss, x)
    for number in (1, 2):
        with torch.no_grad():
            x.copy_(draw(300, 64, seed=number))
        step.fill_(number)
        graph.replay()
        again = draw(300, 64, seed=number).cuda().requires_grad_()
        expected = sigreg_loss(again, seed=number)
        expected.backward()
        assert torch.equal(loss, expected)
        assert torch.equal(gradient, again.grad)


def test_no_synchronisation(draw) -> None:
    x = draw(300, 64).cuda().requires_grad_()
    step = torch.ones((), dtype=torch.int64, device="cuda")
    sigreg_loss(x, seed=step).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        (3.0 * sigreg_loss(x, seed=step)).backward()
        sigreg_loss(x, seed=5).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_extra_memory_is_a_twentieth_of_the_published_loss(draw, columns) -> None:
    x, directions = draw(4096, 128).cuda().requires_grad_(), columns(128, 512).cuda()

    def ours() -> torch.Tensor:
        return torch.autograd.grad(sigreg_loss(x, directions=directions), x)[0]

    def theirs() -> torch.Tensor:
        return torch.autograd.grad(sigreg(x, directions), x)[0]

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-6)
    assert peak_memory(ours, "cuda") <= peak_memory(theirs, "cuda") / 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_deterministic(draw, dtype: torch.dtype) -> None:
    x = draw(3000, 64, dtype=dtype).cuda().requires_grad_()
    first = sigreg_loss(x)
    (gradient,) = torch.autograd.grad(first, x)
    for _ in range(10):
        again = sigreg_loss(x)
        assert torch.equal(again, first)
        assert torch.equal(torch.autograd.grad(again, x)[0], gradient)
