"""`latent_prediction_loss` inside `torch.compile`, and its registrations."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from jepa_fast import latent_prediction_loss


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])  # the last by the reference
@pytest.mark.parametrize("indexed", [True, False])
def test_one_graph_forward_and_backward(draw, dtype: torch.dtype, indexed: bool) -> None:
    prediction, target, index = draw(dtypes=(dtype, dtype))
    index = index if indexed else None
    counter = CompileCounterWithBackend("aot_eager")

    def step(prediction: torch.Tensor) -> torch.Tensor:
        return 2.0 * latent_prediction_loss(1.5 * prediction, target, index, kind="l1")

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=counter)):
        leaf = prediction.clone().requires_grad_()
        loss = function(leaf)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    assert counter.frame_count == 1
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_without_gradients(draw) -> None:
    arguments = draw()
    compiled = torch.compile(latent_prediction_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), latent_prediction_loss(*arguments))


def test_gradient_of_the_target(draw) -> None:
    prediction, target, index = draw()
    target.requires_grad_()
    compiled = torch.compile(latent_prediction_loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(prediction, target, index), target)[0]
    expected = torch.autograd.grad(latent_prediction_loss(prediction, target, index), target)[0]
    torch.testing.assert_close(found, expected)


def test_bad_index_values_still_raise(draw) -> None:
    prediction, target, index = draw()
    index[0, 0] = 24
    compiled = torch.compile(latent_prediction_loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"values in \[0, 24\), got 24 at \[0, 0\]"):
        compiled(prediction, target, index)


# The reference forms its gradient by autograd, which is off where the checks run an op.
@pytest.mark.native
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)], ids=str)
@pytest.mark.parametrize("indexed", [True, False])
def test_opcheck(draw, dtypes: tuple[torch.dtype, torch.dtype], indexed: bool) -> None:
    prediction, target, index = draw(dtypes=dtypes)
    arguments = (prediction, target, index if indexed else None)
    settings = ("smooth_l1", 1.0, True, 1e-5, "auto")
    torch.library.opcheck(torch.ops.jepa_fast.latent_loss_forward.default, (*arguments, *settings))
    upstream = torch.tensor(2.0)
    torch.library.opcheck(torch.ops.jepa_fast.latent_loss_backward.default, (upstream, *arguments, *settings))
