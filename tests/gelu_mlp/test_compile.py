"""`gelu_mlp` inside `torch.compile`, and the registrations of its ops."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from jepa_fast import gelu_mlp


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the second by the reference
def test_one_graph_forward_and_backward(draw, with_gradients, dtype: torch.dtype, autocast: bool) -> None:
    tensors, upstream = draw(2, 5, dtype=dtype)
    counter = CompileCounterWithBackend("aot_eager")

    def step(*arguments: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return 2.0 * gelu_mlp(*arguments, recompute=True)

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    found, expected = (with_gradients(function, tensors, upstream) for function in (compiled, step))
    assert counter.frame_count == 1
    tolerance = 2e-2 if autocast and dtype == torch.float32 else 1e-5  # bfloat16 sums of the first bias
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# The reference works in place of a copy, as the kernels do.
@pytest.mark.parametrize("implementation", [pytest.param("native", marks=pytest.mark.native), "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, implementation: str) -> None:
    before = torch.randn(2, 3, 8).to(dtype).requires_grad_()
    torch.library.opcheck(torch.ops.jepa_fast.gelu.default, (before, implementation))
    grad = torch.randn(2, 3, 8).to(dtype)
    torch.library.opcheck(torch.ops.jepa_fast.gelu_backward.default, (grad, before.detach(), implementation))
