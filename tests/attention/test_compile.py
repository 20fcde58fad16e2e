"""`masked_attention` and `rope_3d` inside `torch.compile`, and their registrations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from jepa_fast import BlockCausal, Rope3D, Varlen, masked_attention
from jepa_fast.kernels.attention import api

MASKS = ("none", "varlen", "varlen_causal", "block_causal", "block_sparse")


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])  # the last by the reference
@pytest.mark.parametrize("rope", [None, "tiled"])
@pytest.mark.parametrize("mask", MASKS)
def test_one_graph_forward_and_backward(
    draw: Callable[..., Any], mask: str, rope: str | None, dtype: torch.dtype
) -> None:
    problem = draw(mask, 32, rope, dtype)
    counter = CompileCounterWithBackend("aot_eager")

    def step(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = masked_attention(2.0 * query, key, value, mask=problem.mask, rope=problem.ropes)
        return (out * problem.grad_out).sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=counter)):
        leaves = [x.clone().requires_grad_() for x in (problem.query, problem.key, problem.value)]
        loss = function(*leaves)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    assert counter.frame_count == 1
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_changing_packed_lengths_compile_once() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def step(x: Tensor, cu_seqlens: Tensor, longest: int, positions: Tensor) -> Tensor:
        mask, rope = Varlen(cu_seqlens, cu_seqlens, longest, longest), Rope3D(positions)
        return sum(masked_attention(x, x, x, mask=mask, rope=rope).square().sum() for _ in range(2))

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    # Not two sequences at first: the three offsets would be taken for the three axes of a position.
    for lengths in ([3, 4, 9], [5, 6], [10, 1, 2, 3], [9, 8], [64, 30, 2, 1, 1]):
        mask = Varlen.from_lengths(lengths)
        x = torch.randn(sum(lengths), 2, 8)
        positions = torch.randint(16, (len(x), 3))
        found = []
        for function in (step, compiled):
            leaf = x.clone().requires_grad_()
            function(leaf, mask.cu_seqlens_q, mask.max_seqlen_q, positions).backward()
            found.append(leaf.grad)
        torch.testing.assert_close(*found)
    assert counter.frame_count == 1


def test_changing_dense_lengths_compile_once() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(masked_attention, fullgraph=True, dynamic=True, backend=counter)
    for length in (7, 12, 33, 90):
        query, key = torch.randn(2, length, 2, 8), torch.randn(2, length + 3, 2, 8)
        options = {"mask": BlockCausal(4, 3)}
        torch.testing.assert_close(
            compiled(query, key, key, **options), masked_attention(query, key, key, **options)
        )
    assert counter.frame_count == 1


def test_tables_that_are_there_are_taken(draw: Callable[..., Any]) -> None:
    problem = draw("none", 32, "tiled")
    arguments = (problem.query, problem.key, problem.value)
    expected = masked_attention(*arguments, rope=problem.ropes)  # fills the cache
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(masked_attention, fullgraph=True, backend=counter)
    for _ in range(3):
        assert torch.equal(compiled(*arguments, rope=problem.ropes), expected)
    assert counter.frame_count == 1


def test_autocast(draw: Callable[..., Any]) -> None:
    problem = draw("none", 32, "tiled")
    arguments = (problem.query, problem.key, problem.value)
    compiled = torch.compile(masked_attention, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (f(*arguments, rope=problem.ropes) for f in (compiled, masked_attention))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_bad_offsets_still_raise() -> None:
    x = torch.zeros(6, 2, 8)
    offsets = torch.tensor([0, 2, 7], dtype=torch.int32)
    compiled = torch.compile(masked_attention, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="cu_seqlens_q: expected values from 0 to the 6 packed tokens"):
        compiled(x, x, x, mask=Varlen(offsets, offsets, 7, 7))


@pytest.mark.native
@pytest.mark.parametrize("rope", [None, "tiled"])
@pytest.mark.parametrize("mask", MASKS)
def test_opcheck(draw: Callable[..., Any], mask: str, rope: str | None) -> None:
    problem = draw(mask, 32, rope)
    leaves = [x.requires_grad_() for x in (problem.query, problem.key, problem.value)]
    form, tensors = api._flatten(problem.mask, problem.ropes, problem.query, 0.25)
    torch.library.opcheck(torch.ops.jepa_fast.attention_forward.default, (*leaves, tensors, *form, "auto"))
    plain = [x.detach() for x in leaves]
    out, lse = torch.ops.jepa_fast.attention_forward(*plain, tensors, *form, "auto")
    torch.library.opcheck(
        torch.ops.jepa_fast.attention_backward.default,
        (*plain, out, lse, problem.grad_out, tensors, *form, "auto"),
    )
