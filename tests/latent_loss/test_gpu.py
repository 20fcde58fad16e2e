"""What only a GPU can show of `latent_prediction_loss`; test_triton.py runs its numerics there, too."""

import pytest
import torch

from jepa_fast import explain, latent_prediction_loss
from jepa_fast.bench.baselines.latent_loss import latent_loss as published
from jepa_fast.bench.measure import peak_memory

pytestmark = pytest.mark.gpu


def on_gpu(arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.cuda() for tensor in arguments)


def test_triton_is_chosen(draw) -> None:
    assert explain("latent_loss", *on_gpu(draw())).chosen == "triton"


@pytest.mark.parametrize("value", [-1, 24, 2**40])
def test_an_index_outside_the_target_makes_the_loss_nan(draw, value: int) -> None:
    prediction, target, index = on_gpu(draw())
    index[1, 2] = value
    loss = latent_prediction_loss(prediction.requires_grad_(), target, index)
    loss.backward()
    assert loss.isnan()
    assert prediction.grad.isnan().all(-1).nonzero().tolist() == [[1, 2]]


def test_runs_on_the_current_stream(draw) -> None:
    prediction, target, index = on_gpu(draw(features=384))
    expected = latent_prediction_loss(prediction + 1, target, index)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # a kernel on another stream would overtake the addition
        prediction.add_(1)
        loss = latent_prediction_loss(prediction, target, index)
    stream.synchronize()
    assert torch.equal(loss, expected)


def test_captured_graph_reads_inputs_anew(draw) -> None:
    prediction, target, index = on_gpu(draw(features=384))
    leaf = prediction.clone().requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, as PyTorch asks before a capture
        latent_prediction_loss(leaf, target, index).backward()
    torch.cuda.current_stream().wait_stream(side)
    leaf.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = latent_prediction_loss(leaf, target, index)
        (gradient,) = torch.autograd.grad(loss, leaf)
    for seed in (1, 2):
        new = on_gpu(draw(features=384, seed=seed))
        with torch.no_grad():
            for old, value in zip((leaf, target, index), new, strict=True):
                old.copy_(value)
        graph.replay()
        again = new[0].requires_grad_()
        expected = latent_prediction_loss(again, *new[1:])
        expected.backward()
        assert torch.equal(loss, expected)
        assert torch.equal(gradient, again.grad)


def test_no_synchronisation(draw) -> None:
    prediction, target, index = on_gpu(draw())
    prediction.requires_grad_()
    latent_prediction_loss(prediction, target, index).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        (3.0 * latent_prediction_loss(prediction, target, index)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_extra_memory_is_a_third_of_the_published_loss() -> None:
    # Ours: the gradient, 4.3 MB. Theirs at the penalty: normalised target 6.3, chosen rows 4.3, penalties 4.3.
    prediction = torch.randn(64, 44, 384, device="cuda", requires_grad=True)
    target = torch.randn(16, 256, 384, device="cuda")
    index = torch.randint(256, (64, 44), device="cuda")

    def ours() -> torch.Tensor:
        return torch.autograd.grad(latent_prediction_loss(prediction, target, index), prediction)[0]

    def theirs() -> torch.Tensor:
        return torch.autograd.grad(published(prediction, target, index.split(16)), prediction)[0]

    torch.testing.assert_close(ours(), theirs())
    assert peak_memory(ours, "cuda") <= peak_memory(theirs, "cuda") / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_deterministic(draw, dtype: torch.dtype) -> None:
    prediction, target, index = on_gpu(
        draw(masks=4, tokens=44, length=256, features=384, dtypes=(dtype, dtype))
    )
    prediction.requires_grad_()
    first = latent_prediction_loss(prediction, target, index)
    for _ in range(10):
        assert torch.equal(latent_prediction_loss(prediction, target, index), first)
