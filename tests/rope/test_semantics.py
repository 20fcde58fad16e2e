"""What `rope_3d` accepts and refuses, its gradient, and its life inside `torch.compile`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from jepa_fast import Rope3D, explain, rope_3d

IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "reference"]
Draw = Callable[..., tuple[Tensor, Tensor, Rope3D]]


@pytest.mark.parametrize("pairing", ["tiled", "interleaved"])
@pytest.mark.parametrize("layout", ["shared", "per_sample", "packed"])
def test_gradcheck(draw: Draw, layout: str, pairing: str) -> None:
    query, key, rope = draw(8, torch.float64, pairing, layout=layout, heads=(2, 1), tokens=3)
    leaves = [x.requires_grad_() for x in (query, key)]
    assert torch.autograd.gradcheck(lambda q, k: rope_3d(q, rope, k), leaves)
    assert torch.autograd.gradcheck(lambda q: rope_3d(q, rope), leaves[:1])


@pytest.mark.parametrize("pairing", ["tiled", "interleaved"])
def test_second_derivative(draw: Draw, pairing: str) -> None:
    query, _, rope = draw(8, torch.float64, pairing, heads=(2, 1), tokens=3)
    assert torch.autograd.gradgradcheck(lambda q: rope_3d(q, rope).pow(3), [query.requires_grad_()])


def test_tables_of_inference_mode_serve_in_training(draw: Draw) -> None:
    query, _, rope = draw()
    with torch.inference_mode():
        own = Rope3D(rope.positions + 0)
        expected = [rope_3d(query, positions) for positions in (rope, own)]
    leaf = query.clone().requires_grad_()
    for positions, before in zip((rope, own), expected, strict=True):
        out = rope_3d(leaf, positions)
        out.sum().backward()
        assert torch.equal(out, before)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty(implementation: str) -> None:
    for shape in ((2, 0, 4, 8), (0, 5, 4, 8), (2, 5, 0, 8), (0, 4, 8)):
        x = torch.zeros(shape, requires_grad=True)
        rope = Rope3D(torch.zeros(shape[-3], 3))
        out = rope_3d(x, rope, x, implementation=implementation)[1]
        out.sum().backward()
        assert out.shape == x.grad.shape == shape


def test_only_the_key_requires_a_gradient(draw: Draw) -> None:
    query, key, rope = draw()
    rope_3d(query, rope, key.requires_grad_())[1].sum().backward()
    alone = key.detach().requires_grad_()
    rope_3d(alone, rope).sum().backward()
    assert torch.equal(key.grad, alone.grad)


@pytest.mark.native
def test_bad_arguments_are_named(draw: Draw) -> None:
    query, key, rope = draw(32)
    positions = rope.positions
    for arguments, error, message in (
        (
            (query[0, 0], rope),
            ValueError,
            r"query: expected \[B, N, H, D\] or packed \[T, H, D\], got \[4, 32\]",
        ),
        ((query.long(), rope), TypeError, r"query: expected a floating-point dtype, got torch\.int64"),
        ((query, rope, key.half()), TypeError, r"key: expected torch\.float32 of query, got torch\.float16"),
        ((query, rope, key.to("meta")), ValueError, "key: expected device cpu of query, got meta"),
        (
            (query, rope, key[:, 1:]),
            ValueError,
            r"key: expected the tokens and head_dim of query \[2, 37, 4, 32\]",
        ),
        ((query[..., :31], rope), ValueError, "query: expected an even head_dim, got 31"),
        ((query[:, 1:], rope), ValueError, r"positions: expected \[36, 3\] or \[2, 36, 3\] for query"),
        (
            (query[0, 1:], rope),
            ValueError,
            r"positions: expected \[36, 3\] for query \[36, 4, 32\], got \[37, 3\]",
        ),
        (
            (query, Rope3D(positions.to("meta"))),
            ValueError,
            "positions: expected device cpu of query, got meta",
        ),
    ):
        with pytest.raises(error, match=message):
            rope_3d(*arguments)
    for options, error, message in (
        (
            {"positions": positions[0]},
            ValueError,
            r"positions: expected \[N, 3\], \[B, N, 3\] or \[T, 3\] .*got \[3\]",
        ),
        ({"positions": positions[:, :2]}, ValueError, r"positions: expected .*got \[37, 2\]"),
        (
            {"positions": positions.bool()},
            TypeError,
            r"positions: expected integers or real numbers, got torch\.bool",
        ),
        ({"pairing": "adjacent"}, ValueError, "pairing: expected one of tiled, interleaved, got 'adjacent'"),
        ({"table": "fp32"}, ValueError, "table: expected one of float32, fair_autocast, hf, got 'fp32'"),
        ({"base": 0.0}, ValueError, "base: expected a number above 0, got 0.0"),
    ):
        with pytest.raises(error, match=message):
            Rope3D(**{"positions": positions, **options})
    with pytest.raises(RuntimeError, match=r"native cannot serve rope: the tensors are torch\.float64"):
        rope_3d(query.double(), rope, implementation="native")


@pytest.mark.native
def test_explain(draw: Draw) -> None:
    query, key, rope = draw()
    assert explain(rope_3d, query, rope, key).chosen == "native"
    assert explain("rope", query.double(), rope).chosen == "reference"
    with pytest.raises(ValueError, match="positions: expected"):
        explain("rope", query[:, 1:], rope)


def test_compiles_once_for_changing_lengths() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def step(x: Tensor, positions: Tensor) -> Tensor:
        query, key = rope_3d(x, Rope3D(positions), x)
        return (query * key).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (7, 20, 33, 5):
        x, positions = torch.randn(2, tokens, 4, 32), torch.randint(16, (2, tokens, 3))
        found = []
        for function in (step, compiled):
            leaf = x.clone().requires_grad_()
            function(leaf, positions).backward()
            found.append(leaf.grad)
        torch.testing.assert_close(*found)
    assert counter.frame_count == 1


@pytest.mark.native
@pytest.mark.parametrize("layout", ["shared", "per_sample", "packed"])
def test_opcheck(draw: Draw, layout: str) -> None:
    query, key, rope = draw(layout=layout)
    tensors: list[Any] = [query.requires_grad_(), key.requires_grad_()]
    torch.library.opcheck(torch.ops.jepa_fast.rope_3d.default, (*rope.tables(32), tensors, False, "auto"))
    settings = (32, "tiled", 10000.0, "hf", torch.bfloat16)
    torch.library.opcheck(torch.ops.jepa_fast.rope_3d_tables.default, (rope.positions, *settings))
