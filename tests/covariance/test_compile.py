"""The covariance losses inside `torch.compile`, and their registration."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from jepa_fast import barlow_twins_loss, covariance_loss, variance_loss, vicreg_loss

VICREG = ("vicreg", 25.0, 12.5, 1.0, 0.0, 1e-4, False, False)
BARLOW = ("barlow", 0.0, 0.0, 1.0, 0.0051, 1e-5, False, True)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("loss", [vicreg_loss, barlow_twins_loss])
def test_one_graph_forward_and_backward(draw, loss: Any, dtype: torch.dtype) -> None:
    views = draw(16, 40, dtype)
    counter = CompileCounterWithBackend("aot_eager")

    def step(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return 2.0 * loss(1.5 * first, second)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=counter)):
        leaves = [view.clone().requires_grad_() for view in views]
        value = function(*leaves)
        value.backward()
        results.append((value.detach(), leaves[0].grad, leaves[1].grad))
    assert counter.frame_count == 1
    torch.testing.assert_close(results[1], results[0], rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("loss", [covariance_loss, variance_loss])
def test_one_view_with_statistics(draw, loss: Any) -> None:
    view = draw(16, 40)[0].requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, statistics = compiled(view, return_statistics=True)
    expected, expected_statistics = loss(view, return_statistics=True)
    assert torch.equal(value, expected)
    for found, true in zip(statistics, expected_statistics, strict=True):
        assert torch.equal(found.nan_to_num(-1.0), true.nan_to_num(-1.0))
        assert not found.requires_grad
    assert torch.equal(torch.autograd.grad(value, view)[0], torch.autograd.grad(expected, view)[0])


def test_without_gradients(draw) -> None:
    views = draw(16, 40)
    compiled = torch.compile(vicreg_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*views), vicreg_loss(*views))


@pytest.mark.native
@pytest.mark.parametrize("settings", [VICREG, BARLOW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradients", [True, False])
def test_opcheck(draw, settings: tuple[Any, ...], dtype: torch.dtype, gradients: bool) -> None:
    for shape in ((6, 20), (20, 6)):
        first, second = draw(*shape, dtype)
        operation = torch.ops.jepa_fast.covariance_terms.default
        torch.library.opcheck(operation, (first, second, *settings, gradients, "auto"))
        if settings is VICREG:
            torch.library.opcheck(operation, (first, None, *settings, gradients, "auto"))
