"""What `layer_norm` and `add_layer_norm` compute, accept and refuse."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast import add_layer_norm, explain, layer_norm

OPTIONS = ("update_bias", "layer_scale", "drop_path")
EVERY_OPTION = [names for count in range(4) for names in itertools.combinations(OPTIONS, count)]
DOUBLE = (torch.float64,) * 3
IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "reference"]
Results = Callable[..., list[Tensor]]


@pytest.mark.parametrize("options", EVERY_OPTION, ids=str)
def test_reference_is_layer_norm_of_the_sum(
    draw, results: Results, published, options: tuple[str, ...]
) -> None:
    inputs = draw(3, 5, 7, dtypes=DOUBLE, options=options)
    torch.testing.assert_close(results(inputs), published(inputs), rtol=1e-11, atol=1e-13)


def test_reference_of_layer_norm_alone(draw, results: Results, published) -> None:
    inputs = draw(3, 5, 7, dtypes=DOUBLE, add=False)
    torch.testing.assert_close(results(inputs), published(inputs), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(24,), (4, 24), (2, 3, 24), (2, 2, 3, 24)], ids=str)
def test_leading_dimensions(draw, results: Results, shape: tuple[int, ...], implementation: str) -> None:
    inputs = draw(*shape, options=("update_bias", "layer_scale"))
    flat = inputs.map(lambda x: x if x.ndim == 1 and x.shape != shape else x.reshape(1, -1, 24))
    if len(shape) == 1:
        flat = inputs
    for found, expected in zip(results(inputs, implementation), results(flat, implementation), strict=True):
        torch.testing.assert_close(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(4, 24), (4, 3, 24), (4, 2, 3, 24)], ids=str)
def test_drop_path_is_a_factor_of_each_sample(shape: tuple[int, ...], implementation: str) -> None:
    factors = torch.tensor([0.0, 1.0, 2.0, 0.0])
    x, residual = torch.ones(shape), torch.zeros(shape)
    vectors = torch.ones(24), torch.zeros(24)
    _, new = add_layer_norm(x, residual, *vectors, drop_path=factors, implementation=implementation)
    assert torch.equal(new, factors.view(-1, *[1] * (len(shape) - 1)).expand(shape))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_layouts(draw, results: Results, implementation: str) -> None:
    def views(x: Tensor) -> list[Tensor]:
        if x.ndim == 1:
            return [x]
        room = torch.randn(4, 9, 40).to(x.dtype)
        inner = room[1:3, 2:7, 5:29]  # as of the last tokens of each sample
        inner.copy_(x)
        return [inner, x.transpose(0, 1).contiguous().transpose(0, 1), x.mT.contiguous().mT]

    inputs = draw(2, 5, 24, options=OPTIONS)
    expected = results(inputs, implementation)
    for k in range(3):
        # The first is made of views whose upstream gradients are strided, too.
        strided = inputs.map(lambda x, k=k: views(x)[k % len(views(x))])
        for found, true in zip(results(strided, implementation), expected, strict=True):
            assert torch.equal(found, true)


def test_expanded_inputs(draw) -> None:
    inputs = draw(2, 5, 24)
    x, residual = inputs.x[:, :1].expand(2, 5, 24), inputs.residual[:1, :1].expand(2, 5, 24)
    found = add_layer_norm(x, residual, inputs.weight, inputs.bias)
    expected = add_layer_norm(x.contiguous(), residual.contiguous(), inputs.weight, inputs.bias)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(output.is_contiguous() for output in found)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("add", [True, False])
def test_no_rows(draw, results: Results, add: bool, implementation: str) -> None:
    for shape in ((0, 4, 24), (4, 0, 24), (0, 24)):
        inputs = draw(*shape, add=add, options=OPTIONS if add else ())
        found = results(inputs, implementation)
        assert found[0].shape == shape
        for gradient in found[1:]:
            assert (gradient == 0).all()


@pytest.mark.native
def test_result_dtypes() -> None:
    low, full = torch.bfloat16, torch.float32
    vectors = torch.ones(8), torch.zeros(8)
    for of_x, of_residual in itertools.product((low, full), (low, full)):
        x, residual = torch.ones(2, 8, dtype=of_x), torch.ones(2, 8, dtype=of_residual)
        for autocast, asked in itertools.product((False, True), (None, full, low)):
            with torch.autocast("cpu", low, enabled=autocast):
                normalized, new = add_layer_norm(x, residual, *vectors, dtype=asked)
                alone = layer_norm(residual, *vectors, dtype=asked)
            expected = asked or (low if autocast else of_residual)
            assert (normalized.dtype, new.dtype, alone.dtype) == (expected, of_residual, expected)
    with torch.autocast("cpu", low):
        assert layer_norm(torch.ones(2, 8, dtype=torch.float64), *vectors).dtype == torch.float64


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_have_the_dtypes_of_their_tensors(implementation: str) -> None:
    x = torch.randn(2, 3, 8, dtype=torch.bfloat16, requires_grad=True)
    residual = torch.randn(2, 3, 8, requires_grad=True)
    weight = torch.ones(8, dtype=torch.float16, requires_grad=True)
    bias = torch.ones(8, dtype=torch.float64, requires_grad=True)
    scale = torch.ones(8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        normalized, new = add_layer_norm(
            x, residual, weight, bias, layer_scale=scale, implementation=implementation
        )
    (normalized.sum() + new.sum()).backward()
    for tensor in (x, residual, weight, bias, scale):
        assert tensor.grad is not None
        assert (tensor.grad.dtype, tensor.grad.shape) == (tensor.dtype, tensor.shape)


@pytest.mark.native
def test_bad_arguments_are_named() -> None:
    x, w, b = torch.zeros(4, 3, 8), torch.ones(8), torch.zeros(8)
    drop = torch.ones(4)
    for arguments, options, error, message in (
        ((torch.zeros(()), w, b), {}, ValueError, r"x: expected \[..., D\] with D of at least 1, got \[\]"),
        ((x[..., :0], w, b), {}, ValueError, r"x: expected \[..., D\] with D of at least 1, got \[4, 3, 0\]"),
        ((x.long(), w, b), {}, TypeError, "x: expected a floating-point dtype, got torch.int64"),
        ((x, w[:7], b), {}, ValueError, r"weight: expected \[8\] as D of x, got \[7\]"),
        ((x, w, b.long()), {}, TypeError, "bias: expected a floating-point dtype, got torch.int64"),
        ((x, w, b.to("meta")), {}, ValueError, "bias: expected device cpu of x, got meta"),
        ((x, w, b), {"eps": -1.0}, ValueError, "eps: expected a finite number of at least 0, got -1.0"),
        ((x, w, b), {"eps": math.nan}, ValueError, "eps: expected a finite number of at least 0, got nan"),
        ((x, w, b), {"dtype": torch.int8}, TypeError, "dtype: expected a floating-point dtype or None, got"),
        ((x, w, b), {"implementation": "cuda"}, ValueError, "implementation: expected auto, .*got 'cuda'"),
        (
            (x.double(), w, b),
            {"implementation": "native"},
            RuntimeError,
            "native cannot serve layer_norm: residual is torch.float64",
        ),
    ):
        with pytest.raises(error, match=message):
            layer_norm(*arguments, **options)
    for arguments, options, error, message in (
        ((x[:2], x, w, b), {}, ValueError, r"x: expected \[4, 3, 8\] of residual, got \[2, 3, 8\]"),
        ((x.long(), x, w, b), {}, TypeError, "x: expected a floating-point dtype, got torch.int64"),
        ((x.to("meta"), x, w, b), {}, ValueError, "x: expected device cpu of residual, got meta"),
        ((x, x.long(), w, b), {}, TypeError, "residual: expected a floating-point dtype, got torch.int64"),
        ((x, x, w, b), {"layer_scale": w[:1]}, ValueError, r"layer_scale: expected \[8\] as D of residual"),
        ((x, x, w, b), {"update_bias": b[:1]}, ValueError, r"update_bias: expected \[8\] as D of residual"),
        ((x, x, w, b), {"drop_path": drop[:3]}, ValueError, r"drop_path: expected \[4\], one .*, got \[3\]"),
        ((x, x, w, b), {"drop_path": drop.long()}, TypeError, "drop_path: expected a floating-point dtype"),
        ((x, x, w, b), {"drop_path": drop.to("meta")}, ValueError, "drop_path: expected device cpu of"),
        ((w, w, w, b), {"drop_path": drop}, ValueError, "drop_path: expected None for a residual without"),
        (
            (x, x, w, b),
            {"drop_path": drop.clone().requires_grad_()},
            ValueError,
            "drop_path: expected no gradient",
        ),
    ):
        with pytest.raises(error, match=message):
            add_layer_norm(*arguments, **options)


@pytest.mark.native
def test_explain() -> None:
    x, w, b = torch.zeros(4, 3, 8), torch.ones(8), torch.zeros(8)
    assert explain(add_layer_norm, x, x, w, b, drop_path=torch.ones(4)).chosen == "native"
    assert explain("layer_norm", x.double(), w, b).chosen == "reference"
    assert "torch.float64" in str(explain("layer_norm", x, w, b, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"drop_path: expected \[4\]"):
        explain("layer_norm", x, x, w, b, drop_path=torch.ones(3))
    with pytest.raises(
        ValueError, match="tensors: expected the 3 of layer_norm or the 4 of add_layer_norm, got 2"
    ):
        explain("layer_norm", x, w)
    with pytest.raises(TypeError, match="options: expected those of the op, got kind"):
        explain("layer_norm", x, w, b, kind=1)
