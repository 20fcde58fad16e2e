"""What `masked_attention` computes, accepts and refuses."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast import BlockCausal, BlockSparse, Rope3D, Varlen, explain, masked_attention

IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "reference"]
MASKS = ("none", "varlen", "varlen_causal", "block_causal", "block_sparse")
Draw = Callable[..., Any]


@pytest.mark.parametrize("rope", [None, "tiled", "interleaved"])
@pytest.mark.parametrize("mask", MASKS)
def test_reference_is_scaled_dot_product_attention(
    draw: Draw,
    gradients: Callable[..., tuple[Tensor, ...]],
    eager: Callable[..., tuple[Tensor, ...]],
    mask: str,
    rope: str | None,
) -> None:
    problem = draw(mask, 64, rope).to(torch.float64)
    if rope is not None:  # the published code's tables in float64, as in its rotation
        ropes = tuple(replace(r, table="hf", dtype=torch.float64) for r in problem.ropes)
        problem = replace(problem, ropes=ropes)
    found = gradients(problem, implementation="reference")
    # Tables are float32 whatever the dtype.
    tolerance = 1e-12 if rope is None else 1e-5
    for ours, theirs in zip(found, eager(problem), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 40, 80, 104, 128])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_not_finite_stays_in_its_row(implementation: str, head_dim: int, dtype: torch.dtype) -> None:
    query, key, value = (torch.randn(3, 8, 1, head_dim).to(dtype) for _ in range(3))
    query[0, 3, 0, -3] = torch.inf
    out = masked_attention(query, key, value, implementation=implementation)
    assert out.isnan().any(-1).nonzero().tolist() == [[0, 3, 0]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_packed_sequences_are_as_if_alone(
    draw: Draw, gradients: Callable[..., tuple[Tensor, ...]], implementation: str
) -> None:
    problem = draw("varlen", 32, "tiled")
    packed = gradients(problem, implementation=implementation)
    starts = [x.tolist() for x in problem.mask.tensors()]
    for q0, q1, k0, k1 in zip(starts[0], starts[0][1:], starts[1], starts[1][1:], strict=False):
        rows = (slice(q0, q1), slice(k0, k1))
        alone = replace(
            problem,
            query=problem.query[None, rows[0]],
            key=problem.key[None, rows[1]],
            value=problem.value[None, rows[1]],
            grad_out=problem.grad_out[None, rows[0]],
            mask=None,
            ropes=tuple(Rope3D(r.positions[s]) for r, s in zip(problem.ropes, rows, strict=True)),
        )
        expected = gradients(alone, implementation=implementation)
        for found, true, side in zip(packed, expected, (0, 0, 1, 1), strict=True):
            torch.testing.assert_close(found[rows[side]], true[0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_cached_prefix_gives_the_rows_of_the_whole(draw: Draw, implementation: str) -> None:
    problem = draw("none", 32, lengths=(60, 60))
    q, k, v = problem.query, problem.key, problem.value
    whole = masked_attention(q, k, v, mask=BlockCausal(12), implementation=implementation)
    for offset in (12, 36, 48):
        part = masked_attention(
            q[:, offset:], k, v, mask=BlockCausal(12, offset), implementation=implementation
        )
        torch.testing.assert_close(part, whole[:, offset:])
        before = slice(None, offset)
        prefix = masked_attention(
            q[:, before], k[:, before], v[:, before], mask=BlockCausal(12), implementation=implementation
        )
        torch.testing.assert_close(prefix, whole[:, before])


def test_flex_attention_semantics(draw: Draw) -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    problem = draw("block_causal", 32, lengths=(60, 70))
    step, offset = problem.mask.block_size, problem.mask.query_offset
    block_mask = flex.create_block_mask(
        lambda b, h, q, k: (q + offset) // step >= k // step, None, None, 60, 70, device="cpu"
    )
    by_head = [x.transpose(1, 2) for x in (problem.query, problem.key, problem.value)]
    expected = flex.flex_attention(*by_head, block_mask=block_mask, enable_gqa=True).transpose(1, 2)
    dense = problem.mask.dense(60, 70, torch.device("cpu"))
    for mask in (problem.mask, BlockSparse.from_dense(dense)):
        torch.testing.assert_close(
            masked_attention(problem.query, problem.key, problem.value, mask=mask), expected
        )


@pytest.mark.parametrize("shapes", [((2, 0, 4, 8), (2, 5, 4, 8)), ((2, 3, 4, 8), (2, 0, 4, 8)), ((0, 3, 4, 8),) * 2,
                                    ((2, 3, 0, 8),) * 2])  # fmt: skip
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty(implementation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    query, key, value = (torch.randn(shapes[i], requires_grad=True) for i in (0, 1, 1))
    for mask in (None, BlockCausal(2)):
        out = masked_attention(query, key, value, mask=mask, implementation=implementation)
        assert out.shape == query.shape
        assert (out == 0).all()
        gradients = torch.autograd.grad(out.sum(), (query, key, value))
        for x, gradient in zip((query, key, value), gradients, strict=True):
            assert gradient.shape == x.shape
            assert (gradient == 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_packed_sequences(implementation: str) -> None:
    for lengths in ([], [0], [0, 0]):
        x = torch.randn(0, 2, 8, requires_grad=True)
        out = masked_attention(x, x, x, mask=Varlen.from_lengths(lengths), implementation=implementation)
        out.sum().backward()
        assert out.shape == x.grad.shape == (0, 2, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_casts_as_sdpa_does(draw: Draw, dtype: torch.dtype) -> None:
    problem = draw("none", 32, heads=(2, 2), dtype=dtype)
    leaves = [x.requires_grad_() for x in (problem.query, problem.key, problem.value)]
    for implementation in ("auto", "reference"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = masked_attention(*leaves, implementation=implementation)
            like = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in leaves))
        assert out.dtype == like.dtype == torch.bfloat16
        found = torch.autograd.grad(out, leaves, problem.grad_out.bfloat16())
        plain = masked_attention(*(x.bfloat16() for x in leaves), implementation=implementation)
        assert torch.equal(out, plain)
        assert all(x.dtype == dtype for x in found)


@pytest.mark.native
def test_explain(draw: Draw) -> None:
    for mask in MASKS:
        problem = draw(mask, 32, "tiled")
        options = {"mask": problem.mask, "rope": problem.ropes}
        arguments = (problem.query, problem.key, problem.value)
        assert explain(masked_attention, *arguments, **options).chosen == "native"
        double = problem.to(torch.float64)
        found = explain("attention", double.query, double.key, double.value, **options)
        assert found.chosen == "reference"
        assert "the tensors are torch.float64" in found.refusals["native"][0]
    with pytest.raises(ValueError, match="value: expected"):
        explain("attention", problem.query, problem.key, problem.value[:, :1])


def bad_calls() -> list[Any]:
    x, packed = torch.zeros(2, 5, 4, 8), torch.zeros(6, 4, 8)
    good = Varlen.from_lengths([2, 4])
    starts = good.cu_seqlens_q

    def varlen(q: Any, k: Any = starts, max_q: int = 4, max_k: int = 4) -> dict[str, Any]:
        return {
            "mask": Varlen(
                q if isinstance(q, Tensor) else torch.tensor(q, dtype=torch.int32), k, max_q, max_k
            )
        }

    p, positions = packed, torch.zeros(5, 3)
    return [
        ((x[0], x, x), {}, ValueError, r"query: expected \[B, N, H, D\], got \[5, 4, 8\]"),
        ((x, x[..., None], x), {}, ValueError, r"key: expected \[B, N, H, D\], got \[2, 5, 4, 8, 1\]"),
        ((x, x, x), {"mask": good}, ValueError, r"query: expected packed \[tokens, H, D\] under Varlen, got"),
        ((p, p, p), {"mask": BlockCausal(2)}, ValueError, r"query: expected \[B, N, H, D\] under BlockCausal"),
        ((x.long(), x, x), {}, TypeError, "query: expected a floating-point dtype, got torch.int64"),
        ((x, x.half(), x), {}, TypeError, "key: expected torch.float32 of query, got torch.float16"),
        ((x, x, x.to("meta")), {}, ValueError, "value: expected device cpu of query, got meta"),
        ((x, x[..., :6], x), {}, ValueError, "key: expected head_dim 8, got 6"),
        ((x[..., :0],) * 3, {}, ValueError, "query: expected head_dim above 0, got 0"),
        ((x, x, x[:, :4]), {}, ValueError, r"value: expected \[2, 5, 4, 8\] of key, got \[2, 4, 4, 8\]"),
        ((x, x[:1], x[:1]), {}, ValueError, "key: expected B = 2 of query, got 1"),
        ((x, x[:, :, :3], x[:, :, :3]), {}, ValueError, "key: expected a number of heads that divides the 4 .* 3"),
        ((x, x[:, :, :0], x[:, :, :0]), {}, ValueError, "key: expected a number of heads that divides the 4 .* 0"),
        (
            (x, x, x),
            {"rope": Rope3D(positions[:4])},
            ValueError,
            r"positions: expected \[5, 3\] or \[2, 5, 3\] for query",
        ),
        (
            (x, x[:, :3], x[:, :3]),
            {"rope": Rope3D(positions)},
            ValueError,
            r"positions: expected \[3, 3\] or \[2, 3, 3\] for key",
        ),
        ((p, p, p), {"mask": good, "rope": Rope3D(positions)}, ValueError, r"positions: expected \[6, 3\] for query"),
        ((x, x, x), {"rope": Rope3D(positions.to("meta"))}, ValueError, "positions: expected device cpu of query"),
        ((x[..., :7],) * 3, {"rope": Rope3D(positions)}, ValueError, "query: expected an even head_dim, got 7"),
        ((x, x, x), {"mask": BlockCausal(0)}, ValueError, "block_size: expected 1 to"),
        ((x, x, x), {"mask": BlockCausal(2**31)}, ValueError, "block_size: expected 1 to"),
        ((x, x, x), {"mask": BlockCausal(2.0)}, TypeError, "block_size: expected an int, got float"),
        ((x, x, None), {}, TypeError, "value: expected a tensor, got NoneType"),
        ((x, x, x), {"rope": (Rope3D(positions),)}, TypeError, "rope: expected None, a Rope3D or a pair of them"),
        ((x, x, x), {"rope": positions}, TypeError, "rope: expected None, a Rope3D or a pair of them, got Tensor"),
        ((p, p, p), varlen(starts, max_q=6.0), TypeError, "max_seqlen_q: expected an int, got float"),
        ((x, x, x), {"mask": BlockCausal(2, -1)}, ValueError, "query_offset: expected 0 to"),
        (
            (x, x, x),
            {"mask": BlockSparse.from_dense(torch.ones(5, 6, dtype=torch.bool))},
            ValueError,
            "mask: expected 5 queries and 5 keys, got a mask of 5 and 6",
        ),
        (
            (x, x, x),
            {"mask": BlockSparse.from_dense(torch.ones(3, 1, 5, 5, dtype=torch.bool))},
            ValueError,
            r"mask: expected leading dimensions that broadcast to \[2, 4\], got \[3, 1\]",
        ),
        ((p, p, p), varlen(starts.long()), TypeError, "cu_seqlens_q: expected int32, got torch.int64"),
        ((p, p, p), varlen(starts, starts.to("meta")), ValueError, "cu_seqlens_k: expected device cpu of query"),
        ((p, p, p), varlen(starts[None]), ValueError, r"cu_seqlens_q: expected contiguous int32 \[S \+ 1\]"),
        ((p, p, p), varlen(starts[:0]), ValueError, r"cu_seqlens_q: expected contiguous int32 \[S \+ 1\]"),
        ((p, p, p), varlen([0, 6]), ValueError, "cu_seqlens_k: expected 2 values as in cu_seqlens_q, got 3"),
        ((p, p, p), varlen([1, 2, 6]), ValueError, "cu_seqlens_q: expected values from 0 to the 6 .*got 1 to 6"),
        ((p, p, p), varlen([0, 2, 7]), ValueError, "cu_seqlens_q: expected values from 0 to the 6 .*got 0 to 7"),
        ((p, p, p), varlen([0, 2, 5]), ValueError, "cu_seqlens_q: expected values from 0 to the 6 .*got 0 to 5"),
        (
            (p, p, p),
            varlen([0, 4, 3, 6], torch.tensor([0, 2, 4, 6], dtype=torch.int32)),
            ValueError,
            r"cu_seqlens_q: expected values that never fall, got 3 after 4 at \[2\]",
        ),
        ((p, p, p), varlen(starts, max_k=3), ValueError, "max_seqlen_k: expected at least 4, the length of sequence 1"),
        ((p, p, p), varlen(starts, max_q=-1), ValueError, "max_seqlen_q: expected 0 to"),
        (
            (x, x, x),
            {"mask": torch.ones(4, 4, dtype=torch.bool)},
            TypeError,
            r"mask: expected None, Varlen, BlockCausal or BlockSparse \(a boolean .* got Tensor",
        ),
        ((x, x, x), {"implementation": "cuda"}, ValueError, "implementation: expected auto, .*got 'cuda'"),
        (
            (x.double(),) * 3,
            {"implementation": "native"},
            RuntimeError,
            "native cannot serve attention: the tensors are torch.float64",
        ),
    ]  # fmt: skip


@pytest.mark.native
@pytest.mark.parametrize(("arguments", "options", "error", "message"), bad_calls())
def test_bad_arguments_are_named(
    arguments: tuple[Tensor, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        masked_attention(*arguments, **options)
