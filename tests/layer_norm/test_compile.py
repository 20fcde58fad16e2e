"""`layer_norm` and `add_layer_norm` inside `torch.compile`, and their registrations."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from jepa_fast import add_layer_norm, layer_norm

OPTIONS = ("update_bias", "layer_scale", "drop_path")


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32,) * 3,
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float64,) * 3,  # by the reference
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [(), OPTIONS], ids=["plain", "factors"])
def test_one_graph_forward_and_backward(
    draw, dtypes: tuple[torch.dtype, ...], options: tuple[str, ...]
) -> None:
    inputs = draw(2, 5, 24, dtypes=dtypes, options=options)
    counter = CompileCounterWithBackend("aot_eager")

    def step(x, residual, weight, bias):
        normalized, new = add_layer_norm(1.5 * x, residual, weight, bias, dtype=dtypes[2], **inputs.options)
        return layer_norm(normalized, weight, bias), 2.0 * new

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=counter)):
        leaves = [t.clone().requires_grad_() for t in (inputs.x, inputs.residual, inputs.weight, inputs.bias)]
        outputs = function(*leaves)
        results.append((*outputs, *torch.autograd.grad(outputs, leaves, inputs.upstream)))
    assert counter.frame_count == 1
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_the_outputs_alone(draw, used: int) -> None:
    inputs = draw(2, 5, 24)
    leaves = [tensor.requires_grad_() for tensor in (inputs.x, inputs.residual, inputs.weight, inputs.bias)]

    def step(*tensors):
        return add_layer_norm(*tensors)[used].square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(function(*leaves), leaves) for function in (compiled, step))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_autocast_and_no_gradients(draw) -> None:
    inputs = draw(2, 5, 24)

    def step(*tensors):
        with torch.autocast("cpu", torch.bfloat16):
            return add_layer_norm(*tensors)

    arguments = (inputs.x, inputs.residual, inputs.weight, inputs.bias)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*arguments)
    assert compiled[0].dtype == torch.bfloat16
    torch.testing.assert_close(compiled, step(*arguments), rtol=0, atol=0)


def test_sizes_may_change(draw) -> None:
    compiled = torch.compile(add_layer_norm, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (5, 7):
        inputs = draw(2, tokens, 24)
        arguments = (inputs.x.requires_grad_(), inputs.residual, inputs.weight, inputs.bias)
        found = compiled(*arguments)
        torch.testing.assert_close(found, add_layer_norm(*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=pytest.mark.native), "reference"])
@pytest.mark.parametrize("options", [None, (), OPTIONS], ids=["alone", "plain", "factors"])
def test_opcheck(draw, options: tuple[str, ...] | None, implementation: str) -> None:
    inputs = draw(2, 3, 8, options=options or (), add=options is not None)
    for tensor in (inputs.residual, inputs.weight, inputs.x, inputs.options.get("layer_scale")):
        if tensor is not None:
            tensor.requires_grad_()
    vectors = [inputs.options.get(name) for name in OPTIONS]
    forward = (inputs.residual, inputs.x, inputs.weight, inputs.bias, *vectors)
    torch.library.opcheck(
        torch.ops.jepa_fast.layer_norm_forward.default, (*forward, 1e-6, torch.float32, implementation)
    )
    with torch.no_grad():
        _, new, mean, rstd = torch.ops.jepa_fast.layer_norm_forward(
            *forward, 1e-6, torch.float32, implementation
        )
        if inputs.x is None:
            new = inputs.residual.detach()
        update_dtype = None if inputs.x is None else torch.float32
        scaled = inputs.x if options else None
        backward = (*inputs.upstream, new, mean, rstd, inputs.weight, scaled, *vectors)
        detached = [None if tensor is None else tensor.detach() for tensor in backward]
    torch.library.opcheck(
        torch.ops.jepa_fast.layer_norm_backward.default, (*detached, update_dtype, implementation)
    )
