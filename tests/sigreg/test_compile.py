"""`sigreg_loss` inside `torch.compile`, and its registration."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from jepa_fast import sigreg_loss
from jepa_fast.kernels.sigreg.settings import VARIANTS


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])  # the last by the reference
@pytest.mark.parametrize("given", [True, False])
def test_one_graph_forward_and_backward(draw, columns, given: bool, dtype: torch.dtype) -> None:
    x, directions = draw(2, 30, 8, dtype=dtype), columns(8, 20)
    counter = CompileCounterWithBackend("aot_eager")
    options = {"directions": directions} if given else {"num_slices": 20, "seed": 3}

    def step(y: Tensor) -> Tensor:
        return 2.0 * sigreg_loss(1.5 * y, **options)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=counter)):
        leaf = x.clone().requires_grad_()
        loss = function(leaf)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    assert counter.frame_count == 1
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_gradients(draw, variant: str) -> None:
    x = draw(2, 10, 6)
    compiled = torch.compile(sigreg_loss, fullgraph=True, backend="aot_eager")
    found = compiled(x, num_slices=20, variant=variant)
    assert torch.equal(found, sigreg_loss(x, num_slices=20, variant=variant))


def test_a_step_counter_as_the_seed_compiles_once(draw) -> None:
    x = draw(10, 6)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda y, seed: sigreg_loss(y, num_slices=20, seed=seed), fullgraph=True, backend=counter
    )
    for step in range(4):
        assert torch.equal(compiled(x, torch.tensor(step)), sigreg_loss(x, num_slices=20, seed=step))
    assert counter.frame_count == 1


def test_an_integer_seed_compiles_at_most_three_times(draw) -> None:
    x = draw(10, 6)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda y, seed: sigreg_loss(y, num_slices=20, seed=seed), fullgraph=True, backend=counter
    )
    for step in range(6):
        assert torch.equal(compiled(x, step), sigreg_loss(x, num_slices=20, seed=step))
    assert counter.frame_count <= 3  # 0 and 1 are constants to the compiler


def test_bad_shapes_still_raise(draw) -> None:
    compiled = torch.compile(sigreg_loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="x: expected at least N = 2 samples"):
        compiled(draw(1, 6))


@pytest.mark.parametrize("wants_gradient", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_opcheck(draw, columns, dtype: torch.dtype, wants_gradient: bool) -> None:
    x = draw(2, 10, 6, dtype=dtype)
    settings = ("lejepa", 7, 17, 3.0, 1, False, "", wants_gradient, "auto")
    torch.library.opcheck(
        torch.ops.jepa_fast.sigreg.default, (x, columns(6, 7), None, 0, *settings), atol=0, rtol=0
    )
    torch.library.opcheck(
        torch.ops.jepa_fast.sigreg.default, (x, None, torch.tensor(4), 0, *settings), atol=0, rtol=0
    )
