"""What `gelu_mlp` computes, accepts and refuses."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from jepa_fast import explain, gelu_mlp
from jepa_fast.bench.measure import peak_memory

IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "reference"]
Run = Callable[..., list[Tensor]]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rows", [(7,), (2, 5), (2, 3, 4)], ids=str)
def test_reference_is_the_formula(draw, with_gradients: Run, rows: tuple[int, ...], recompute: bool) -> None:
    def formula(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden = x @ w1.t() + b1
        return (hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))) @ w2.t() + b2

    tensors, upstream = draw(*rows, dtype=torch.float64)
    found = with_gradients(partial(gelu_mlp, recompute=recompute), tensors, upstream)
    torch.testing.assert_close(found, with_gradients(formula, tensors, upstream), rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(gelu_mlp(*tensors), found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_numerical_gradients(draw, with_gradients: Run, recompute: bool) -> None:
    # By hand: gradcheck runs several backwards over one output, which the op refuses.
    tensors, upstream = draw(2, 3, sizes=(3, 5, 2), dtype=torch.float64)
    gradients = with_gradients(partial(gelu_mlp, recompute=recompute), tensors, upstream)[1:]
    step = 1e-6
    for tensor, gradient in zip(tensors, gradients, strict=True):
        for k in range(tensor.numel()):
            values = []
            for sign in (1, -1):
                tensor.view(-1)[k] += sign * step
                values.append((gelu_mlp(*tensors) * upstream).sum())
                tensor.view(-1)[k] -= sign * step
            slope = (values[0] - values[1]) / (2 * step)
            torch.testing.assert_close(gradient.reshape(-1)[k], slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_autocast_decides_the_dtype(draw, with_gradients: Run, recompute: bool, implementation: str) -> None:
    tensors, upstream = draw(2, 5)
    low = [tensor.bfloat16() for tensor in tensors]
    run = partial(gelu_mlp, recompute=recompute, implementation=implementation)

    def under_autocast(*arguments: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return run(*arguments)

    found = with_gradients(under_autocast, tensors, upstream)
    assert found[0].dtype == torch.bfloat16
    assert {gradient.dtype for gradient in found[1:]} == {torch.float32}
    expected = with_gradients(run, low, upstream)
    assert torch.equal(found[0], expected[0])
    for k in (1, 2, 4, 5):  # of b1 the float32 sum is kept
        assert torch.equal(found[k], expected[k].float())
    assert torch.equal(found[3].bfloat16(), expected[3])
    double = [tensor.double() for tensor in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        assert gelu_mlp(*double).dtype == torch.float64


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_second_backward_is_refused(draw, recompute: bool, implementation: str) -> None:
    tensors, upstream = draw(2, 5)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    output = gelu_mlp(*leaves, recompute=recompute, implementation=implementation)
    torch.autograd.grad(output, leaves, upstream, retain_graph=True)
    with pytest.raises(RuntimeError, match="gelu_mlp: expected one backward"):
        torch.autograd.grad(output, leaves, upstream)
    output = gelu_mlp(*leaves, recompute=recompute, implementation=implementation)
    (gradient, *_) = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="gelu_mlp: expected one differentiation"):
        gradient.sum().backward()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_some_tensors_need_no_gradient(draw, with_gradients: Run, implementation: str) -> None:
    tensors, upstream = draw(2, 5)
    expected = with_gradients(partial(gelu_mlp, implementation=implementation), tensors, upstream)
    for k in range(5):
        leaf = tensors[k].clone().requires_grad_()
        output = gelu_mlp(*tensors[:k], leaf, *tensors[k + 1 :], implementation=implementation)
        assert torch.equal(torch.autograd.grad(output, leaf, upstream)[0], expected[1 + k])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_no_rows_and_strided_inputs(draw, with_gradients: Run, recompute: bool, implementation: str) -> None:
    run = partial(gelu_mlp, recompute=recompute, implementation=implementation)
    tensors, upstream = draw(0, 5)
    found = with_gradients(run, tensors, upstream)
    assert found[0].shape == (0, 5, 10)
    assert all((gradient == 0).all() for gradient in found[2:])
    tensors, upstream = draw(3, 5)
    expected = with_gradients(run, tensors, upstream)
    strided = [tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for tensor in tensors]
    strided[0] = tensors[0].transpose(0, 1).contiguous().transpose(0, 1)
    leaves = [tensor.requires_grad_() for tensor in strided]
    gradients = torch.autograd.grad(run(*leaves), leaves, upstream.mT.contiguous().mT)
    torch.testing.assert_close(gradients, tuple(expected[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_kept_for_the_backward(dtype: torch.dtype) -> None:
    rows, width, hidden = 512, 64, 512
    shapes = ((rows, width), (hidden, width), (hidden,), (width, hidden), (width,))
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    layer = rows * hidden * dtype.itemsize
    upstream = torch.randn(rows, width).to(dtype)

    def kept(recompute: bool) -> int:
        saved: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            saved.append(tensor.numel() * dtype.itemsize if tensor.shape == (rows, hidden) else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            gelu_mlp(*leaves, recompute=recompute)
        return sum(saved)

    def step(recompute: bool) -> object:
        return torch.autograd.grad(gelu_mlp(*leaves, recompute=recompute), leaves, upstream)

    assert kept(False) == 2 * layer
    assert kept(True) == layer
    # Two hidden layers are alive at once, never three; the rest is an eighth of one each. In bfloat16 oneDNN takes
    # copies of operands, too.
    if dtype == torch.float32:
        for recompute in (False, True):
            assert peak_memory(lambda recompute=recompute: step(recompute)) <= 2.8 * layer


@pytest.mark.native
def test_bad_arguments_are_named(draw) -> None:
    (x, w1, b1, w2, b2), _ = draw(2, 5)
    for arguments, options, error, message in (
        (
            (x[0, 0], w1, b1, w2, b2),
            {},
            ValueError,
            r"x: expected \[..., K\] with at least one .*, got \[12\]",
        ),
        ((x.long(), w1, b1, w2, b2), {}, TypeError, "x: expected a floating-point dtype, got torch.int64"),
        ((x, w1[..., :5], b1, w2, b2), {}, ValueError, r"w1: expected \[40, 12\], got \[40, 5\]"),
        ((x, w1[0], b1, w2, b2), {}, ValueError, r"w1: expected \[H, K\], got \[12\]"),
        ((x, w1, b1[:3], w2, b2), {}, ValueError, r"b1: expected \[40\], got \[3\]"),
        ((x, w1, b1, w2.t(), b2), {}, ValueError, r"w2: expected \[40, 40\], got \[40, 10\]"),
        ((x, w1, b1, w2, b2[:3]), {}, ValueError, r"b2: expected \[10\], got \[3\]"),
        ((x, w1, b1, w2, b2.to("meta")), {}, ValueError, "b2: expected device cpu of x, got meta"),
        ((x, w1, b1, w2, b2), {"implementation": "cuda"}, ValueError, "implementation: expected auto"),
        (
            (x.double(), w1, b1, w2, b2),
            {"implementation": "native"},
            RuntimeError,
            "native cannot serve gelu_mlp: x is torch.float64",
        ),
    ):
        with pytest.raises(error, match=message):
            gelu_mlp(*arguments, **options)
    assert explain(gelu_mlp, x, w1, b1, w2, b2).chosen == "native"
    assert explain("gelu_mlp", x.double(), w1, b1, w2, b2).chosen == "reference"
    assert math.prod(x.shape) > 0
