"""The reference's gradients by finite differences, and what autograd may do with the ops."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast import add_layer_norm, layer_norm
from jepa_fast.bench.measure import check_error, peak_memory

OPTIONS = ("update_bias", "layer_scale", "drop_path")
IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "reference"]


@pytest.mark.parametrize(
    "options", [names for count in range(4) for names in itertools.combinations(OPTIONS, count)], ids=str
)
def test_gradcheck(draw, options: tuple[str, ...]) -> None:
    inputs = draw(2, 3, 5, dtypes=(torch.float64,) * 3, options=options).map(lambda tensor: tensor.double())
    vectors = [inputs.options[name].requires_grad_() for name in options if name != "drop_path"]
    leaves = [tensor.requires_grad_() for tensor in (inputs.x, inputs.residual, inputs.weight, inputs.bias)]

    def op(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip([name for name in options if name != "drop_path"], tensors[4:], strict=True))
        if "drop_path" in options:
            given["drop_path"] = inputs.options["drop_path"]
        return add_layer_norm(*tensors[:4], eps=1e-3, **given)

    assert torch.autograd.gradcheck(op, (*leaves, *vectors))


def test_gradcheck_of_layer_norm() -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaves = [x, torch.rand(5, dtype=torch.float64) + 0.5, torch.rand(5, dtype=torch.float64)]
    assert torch.autograd.gradcheck(layer_norm, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("used", [0, 1])
def test_one_of_the_outputs_alone(draw, results, published, used: int, implementation: str) -> None:
    inputs = draw(2, 5, 24)
    zeros = torch.zeros_like(inputs.residual)
    leaves = [tensor.requires_grad_() for tensor in (inputs.x, inputs.residual, inputs.weight, inputs.bias)]
    output = add_layer_norm(*leaves, implementation=implementation)[used]
    found = torch.autograd.grad(output, leaves, inputs.upstream[used])
    inputs.upstream = (inputs.upstream[0], zeros) if used == 0 else (zeros, inputs.upstream[1])
    _, _, residual, weight, bias, x = published(inputs)
    torch.testing.assert_close(found, (x, residual, weight, bias), rtol=1e-4, atol=1e-5)


@pytest.mark.native
def test_one_tensor_is_the_gradient_of_both() -> None:
    seen: list[int] = []
    x, residual = (torch.randn(2, 3, 8, requires_grad=True) for _ in range(2))
    nodes = [x * 1.0, residual * 1.0]
    for node in nodes:
        node.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    normalized, new = add_layer_norm(*nodes, torch.ones(8), torch.zeros(8))
    (normalized + new).sum().backward()
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert torch.equal(x.grad, residual.grad)
    x.grad.zero_()  # the leaves' own are apart
    assert residual.grad.abs().max() > 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_second_backward_is_bit_equal_and_second_order_is_refused(draw, implementation: str) -> None:
    inputs = draw(2, 5, 24, options=OPTIONS)
    leaves = [tensor.requires_grad_() for tensor in (inputs.x, inputs.residual, inputs.weight, inputs.bias)]
    outputs = add_layer_norm(*leaves, **inputs.options, implementation=implementation)
    first, second = (
        torch.autograd.grad(outputs, leaves, inputs.upstream, retain_graph=True) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    (gradient, *_) = torch.autograd.grad(outputs[0].square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="layer_norm: expected one differentiation"):
        gradient.sum().backward()


@pytest.mark.native
def test_some_tensors_need_no_gradient(draw, published) -> None:
    inputs = draw(2, 5, 24)
    inputs.weight.requires_grad_()
    found = torch.autograd.grad(
        add_layer_norm(inputs.x, inputs.residual, inputs.weight, inputs.bias), inputs.weight, inputs.upstream
    )[0]
    torch.testing.assert_close(found, published(inputs)[3], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert layer_norm(inputs.residual, inputs.weight, inputs.bias).grad_fn is None


@pytest.mark.native
def test_a_chain_of_blocks_under_autocast() -> None:
    """What a stack does with it: every LayerNorm but the first adds the branch before it."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 16, 64, generator=generator)
    weights = [torch.randn(64, 64, generator=generator) / 8 for _ in range(3)]
    vectors = torch.rand(64, generator=generator) + 0.5, torch.rand(64, generator=generator)

    def ours(stream: Tensor, vectors: tuple[Tensor, Tensor], weights: list[Tensor]) -> Tensor:
        y = layer_norm(stream, *vectors)
        for weight in weights:
            y, stream = add_layer_norm(y @ weight.to(y.dtype), stream, *vectors)
        return y

    def plain(stream: Tensor, vectors: tuple[Tensor, Tensor], weights: list[Tensor]) -> Tensor:
        def norm(x: Tensor) -> Tensor:
            return F.layer_norm(x, (64,), *vectors, 1e-6)

        y = norm(stream)
        for weight in weights:
            stream = stream + y @ weight
            y = norm(stream)
        return y

    def gradient(
        function: Callable[..., Tensor], dtype: torch.dtype, autocast: bool
    ) -> tuple[Tensor, Tensor]:
        leaf = start.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = function(leaf, tuple(v.to(dtype) for v in vectors), [w.to(dtype) for w in weights])
        return y.detach().to(dtype), torch.autograd.grad(y.square().mean(), leaf)[0]

    check = check_error(
        gradient(ours, torch.float32, True),
        gradient(plain, torch.float32, True),
        gradient(plain, torch.float64, False),
    )
    assert check.passed, check.reason


@pytest.mark.native
def test_extra_memory_of_forward_and_backward() -> None:
    rows, width = 4096, 384
    x, residual = (torch.randn(rows, width).bfloat16().requires_grad_() for _ in range(2))
    vectors = torch.ones(width, requires_grad=True), torch.zeros(width, requires_grad=True)
    leaves = (x, residual, *vectors)
    upstream = [torch.randn(rows, width).bfloat16() for _ in range(2)]
    one = rows * width * 2

    def ours() -> object:
        return torch.autograd.grad(add_layer_norm(x, residual, *vectors), leaves, upstream)

    def theirs() -> object:
        new = residual + x
        normalized = F.layer_norm(new, (width,), *vectors, 1e-6)
        return torch.autograd.grad((normalized, new), leaves, upstream)

    # normalized, new_residual and one gradient for both; statistics and sums are small
    assert 3 * one <= peak_memory(ours) <= 3.1 * one
    assert peak_memory(ours) <= peak_memory(theirs)
