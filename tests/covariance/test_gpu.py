"""What only a GPU can show of the covariance losses; test_triton.py runs their numerics there, too."""

import pytest
import torch

from jepa_fast import barlow_twins_loss, explain, vicreg_loss
from jepa_fast.bench.baselines import covariance as published
from jepa_fast.bench.measure import peak_memory

pytestmark = pytest.mark.gpu
LOSSES = [vicreg_loss, barlow_twins_loss]
SHAPES = [(96, 512), (512, 96)]


def on_gpu(views: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [view.cuda().requires_grad_() for view in views]


def test_triton_is_chosen(draw) -> None:
    assert explain("covariance", *on_gpu(draw(8, 16))).chosen == "triton"


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_synchronisation(draw, loss, shape: tuple[int, int]) -> None:
    views = on_gpu(draw(*shape))
    loss(*views).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value, _ = loss(*views, return_statistics=True)
        (3.0 * value).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_captured_graph_reads_inputs_anew(draw, loss, shape: tuple[int, int]) -> None:
    views = on_gpu(draw(*shape))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, as PyTorch asks before a capture
        torch.autograd.grad(loss(*views), views)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss(*views)
        gradients = torch.autograd.grad(value, views)
    for seed in (1, 2):
        new = on_gpu(draw(*shape, seed=seed))
        with torch.no_grad():
            for old, other in zip(views, new, strict=True):
                old.copy_(other)
        graph.replay()
        expected = loss(*new)
        assert torch.equal(value, expected)
        for mine, true in zip(gradients, torch.autograd.grad(expected, new), strict=True):
            assert torch.equal(mine, true)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_deterministic(draw, loss, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    views = on_gpu(draw(*shape, dtype))
    first = loss(*views)
    gradients = torch.autograd.grad(first, views)
    for _ in range(10):
        again = loss(*views)
        assert torch.equal(again, first)
        for a, b in zip(torch.autograd.grad(again, views), gradients, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(vicreg_loss, published.vicreg_loss), (barlow_twins_loss, published.barlow_twins_loss)],
)
def test_extra_memory_is_small_in_the_gram_form(draw, ours, theirs) -> None:
    views = on_gpu(draw(256, 8192))

    def peak(loss) -> int:
        return peak_memory(lambda: torch.autograd.grad(loss(*views), views), "cuda")

    peak(ours)  # compiles
    assert peak(ours) <= 0.05 * peak(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_into_one_graph(draw, dtype: torch.dtype) -> None:
    views = on_gpu(draw(64, 512, dtype))
    torch._dynamo.reset()
    found = torch.compile(vicreg_loss, fullgraph=True)(*views)
    expected = vicreg_loss(*views)
    assert torch.equal(found, expected)
    for a, b in zip(torch.autograd.grad(found, views), torch.autograd.grad(expected, views), strict=True):
        torch.testing.assert_close(a, b, rtol=2 * torch.finfo(dtype).eps, atol=0)
