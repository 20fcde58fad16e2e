"""What the ops of token routing compute, accept and refuse."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import jepa_fast
from jepa_fast import assemble_predictor_tokens, explain, gather_tokens, masked_attention, pack_tokens
from jepa_fast.bench.baselines.token_routing import (
    gather_masks,
    ijepa_predictor_tokens,
    indexed_predictor_tokens,
)

Draw = Callable[..., tuple[Tensor, ...]]
IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "reference"]
DOUBLE = (torch.float64, torch.float64)


def test_gather_is_the_published_one(draw_gather: Draw) -> None:
    x, index, position = draw_gather(samples=3, dtypes=DOUBLE)
    expected = gather_masks(x + position, index.split(3))
    assert torch.equal(gather_tokens(x, index, position=position), expected)
    assert torch.equal(gather_tokens(x, index), gather_masks(x, index.split(3)))


def test_assembly_is_the_published_one(draw_assembly: Draw) -> None:
    arguments = draw_assembly(samples=3, dtypes=DOUBLE)
    context, context_index, target_index, position, mask_token = arguments
    found = assemble_predictor_tokens(*arguments, num_context=2)
    masks = context_index.split(3), target_index.split(3)
    assert torch.equal(found, ijepa_predictor_tokens(context, *masks, position[None], mask_token))
    assert torch.equal(found, indexed_predictor_tokens(*arguments, num_context=2))
    flat = assemble_predictor_tokens(*arguments[:4], mask_token.flatten(), num_context=2)
    assert torch.equal(found, flat)


def test_gradients_of_the_reference(draw_gather: Draw, draw_assembly: Draw) -> None:
    x, index, position = draw_gather(length=4, features=3, repeats=True, dtypes=DOUBLE)
    leaves = [t.requires_grad_() for t in (x, position)]
    assert torch.autograd.gradcheck(lambda x, p: gather_tokens(x, index, position=p), leaves)
    assert torch.autograd.gradcheck(lambda x: gather_tokens(x, index), leaves[:1])
    assert torch.autograd.gradcheck(lambda p: gather_tokens(x.detach(), index, position=p), leaves[1:])
    pair = [index, index[:2, :2]]
    assert torch.autograd.gradcheck(lambda x, p: pack_tokens(x, pair, position=p).tokens, leaves)
    context, *indices, position, mask_token = draw_assembly(
        length=6, seen=3, hidden=2, features=3, dtypes=DOUBLE
    )
    leaves = [t.requires_grad_() for t in (context, position, mask_token)]
    assert torch.autograd.gradcheck(
        lambda c, p, m: assemble_predictor_tokens(c, *indices, p, m, num_context=2), leaves
    )
    assert torch.autograd.gradcheck(
        lambda m: assemble_predictor_tokens(context.detach(), *indices, position.detach(), m, num_context=2),
        leaves[2:],
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pack_is_its_gathers(draw_gather: Draw, differentiated, implementation: str, dtype) -> None:
    x, index, position = draw_gather(dtypes=(dtype, torch.float32))
    indices = [index, index[:2, :3], index[:, :0]]
    packed = pack_tokens(x, indices, position=position, implementation=implementation)
    parts = packed.tokens.split([i.numel() for i in indices])
    for part, own in zip(parts, indices, strict=True):
        assert torch.equal(part.view(*own.shape, 33), gather_tokens(x, own, position=position))
    assert packed.ids.tolist() == [*index.flatten().tolist(), *index[:2, :3].flatten().tolist()]
    assert packed.mask.cu_seqlens_q.tolist() == [0, 5, 10, 15, 20, 23, 26, 26, 26, 26, 26]
    assert (packed.mask.max_seqlen_q, packed.tokens.dtype) == (5, torch.float32)

    _, gradient = differentiated(lambda x: pack_tokens(x, indices, implementation=implementation).tokens, [x])
    one = torch.cat([index, torch.cat([index[:2, :3], index[:2, :2]], 1)])  # the same tokens and two more
    upstream = torch.randn(26, 33, generator=torch.Generator().manual_seed(1)).to(dtype).double()
    exact = x.double().requires_grad_()
    picked = gather_tokens(exact, one).flatten(0, 1)
    kept = [*range(20), 20, 21, 22, 25, 26, 27]
    (expected,) = torch.autograd.grad(picked[kept], exact, upstream)
    torch.testing.assert_close(gradient, expected.to(dtype))


@pytest.mark.native
def test_a_pack_is_attended_like_its_sets(draw_gather: Draw) -> None:
    x, index, _ = draw_gather(features=32)
    indices = [index[:2], index[2:, :3]]
    packed = pack_tokens(x, indices)
    heads = packed.tokens.unflatten(-1, (2, 16))
    found = masked_attention(heads, heads, heads, mask=packed.mask).split([i.numel() for i in indices])
    for part, own in zip(found, indices, strict=True):
        alone = gather_tokens(x, own).unflatten(-1, (2, 16))
        expected = masked_attention(alone, alone, alone)
        torch.testing.assert_close(part.view(expected.shape), expected)


def test_result_has_the_promoted_type_unless_told(draw_gather: Draw, draw_assembly: Draw) -> None:
    half, full = torch.bfloat16, torch.float32
    x, index, position = draw_gather(dtypes=(half, full))
    assert gather_tokens(x, index).dtype == half
    assert gather_tokens(x, index, position=position).dtype == full
    assert gather_tokens(x, index, position=position.to(half)).dtype == half
    assert gather_tokens(x, index, position=position, dtype=half).dtype == half
    arguments = draw_assembly(dtypes=(half, full))
    assert assemble_predictor_tokens(*arguments, num_context=2).dtype == full
    assert assemble_predictor_tokens(*arguments, num_context=2, dtype=half).dtype == half


def test_autocast_changes_nothing(draw_gather: Draw, draw_assembly: Draw, differentiated) -> None:
    x, index, position = draw_gather()
    context, *rest = draw_assembly()

    def run() -> list[Tensor]:
        return [
            *differentiated(lambda x: gather_tokens(x, index, position=position), [x]),
            *differentiated(lambda c: assemble_predictor_tokens(c, *rest, num_context=2), [context]),
        ]

    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "empty",
    [{"tokens": 0}, {"masks": 0}, {"features": 0}, {"samples": 0}, {"length": 0, "tokens": 0}],
    ids=str,
)
def test_empty_gathers(draw_gather: Draw, differentiated, implementation: str, empty: dict[str, int]) -> None:
    x, index, position = draw_gather(**empty)
    out, *gradients = differentiated(
        lambda x, p: gather_tokens(x, index, position=p, implementation=implementation), (x, position)
    )
    assert out.shape == (*index.shape, x.shape[2])
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("empty", [{"seen": 0}, {"hidden": 0}, {"masks": 0}, {"features": 0}], ids=str)
def test_empty_assemblies(draw_assembly: Draw, differentiated, implementation: str, empty) -> None:
    context, *indices, position, mask_token = draw_assembly(**empty)
    call = lambda c, p, m: assemble_predictor_tokens(  # noqa: E731
        c, *indices, p, m, num_context=2, implementation=implementation
    )
    out, *gradients = differentiated(call, (context, position, mask_token))
    exact = differentiated(
        call
        if implementation == "reference"
        else lambda c, p, m: assemble_predictor_tokens(
            c, *indices, p, m, num_context=2, implementation="reference"
        ),
        (context, position, mask_token),
    )
    torch.testing.assert_close((out, *gradients), exact)
    if "masks" in empty:
        assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_index_outside_is_named(implementation: str) -> None:
    x, index = torch.zeros(4, 256, 16), torch.zeros(8, 44, dtype=torch.int64)
    good = torch.zeros(4, 16, dtype=torch.int64)
    for value in (300, 256, -1):
        index[2, 17], index[5, 3] = value, value
        message = f"index: expected int64 [B, K] with values in [0, 256), got {value} at [2, 17]"
        with pytest.raises(ValueError, match="index") as caught:
            gather_tokens(x, index, implementation=implementation)
        assert str(caught.value) == message
        with pytest.raises(ValueError, match="indices") as caught:
            pack_tokens(x, [good, index], implementation=implementation)
        assert str(caught.value) == f"indices[1]: {message[7:]}"
        for name in ("context_index", "target_index"):
            indices = {"context_index": good.clone(), "target_index": good.clone()}
            indices[name][2, 3] = value
            with pytest.raises(ValueError, match="index") as caught:
                assemble_predictor_tokens(
                    x[:, :16], *indices.values(), x[0], x[0, 0], implementation=implementation
                )
            assert str(caught.value) == f"{name}: {message[7:].replace('17', '3')}"


@pytest.mark.native
def test_bad_arguments_are_named() -> None:
    x, i, p = torch.zeros(2, 5, 8), torch.zeros(4, 3, dtype=torch.int64), torch.zeros(5, 8)
    for arguments, options, error, message in (
        ((x[0], i), {}, ValueError, r"x: expected three dimensions \[batch, tokens, D\], got \[5, 8\]"),
        ((x.long(), i), {}, TypeError, "x: expected a floating-point dtype, got torch.int64"),
        ((x, i.int()), {}, TypeError, "index: expected int64, got torch.int32"),
        ((x, i[:3]), {}, ValueError, r"index: expected int64 \[multiple of B = 2, K\], got \[3, 3\]"),
        ((x, i[0]), {}, ValueError, r"index: expected int64 \[multiple of B = 2, K\], got \[3\]"),
        ((x[:0], i), {}, ValueError, r"index: expected int64 \[multiple of B = 0, K\], got \[4, 3\]"),
        ((x, i.to("meta")), {}, ValueError, "index: expected device cpu, got meta"),
        ((x, i), {"position": p[:4]}, ValueError, r"position: expected \[5, 8\], got \[4, 8\]"),
        ((x, i), {"position": p[None]}, ValueError, r"position: expected \[5, 8\], got \[1, 5, 8\]"),
        ((x, i), {"position": p.long()}, TypeError, "position: expected a floating-point dtype"),
        ((x, i), {"position": p.to("meta")}, ValueError, "position: expected device cpu, got meta"),
        ((x, i), {"implementation": "cuda"}, ValueError, "implementation: expected auto, .*got 'cuda'"),
        (
            (x.double(), i),
            {"implementation": "native"},
            RuntimeError,
            "native cannot serve token_routing: a tensor is torch.float64",
        ),
    ):
        with pytest.raises(error, match=message):
            gather_tokens(*arguments, **options)
    with pytest.raises(ValueError, match="indices: expected at least one index, got none"):
        pack_tokens(x, [])
    with pytest.raises(ValueError, match=r"indices\[1\]: expected int64 \[multiple of B = 2, K\], got \[3\]"):
        pack_tokens(x, [i, i[0]])

    c, ci, ti, m = torch.zeros(4, 3, 8), i, torch.zeros(6, 2, dtype=torch.int64), torch.zeros(1, 1, 8)
    for arguments, options, error, message in (
        ((c[0], ci, ti, p, m), {}, ValueError, "context: expected three dimensions"),
        (
            (c, ci, ti, p, m),
            {"num_context": 3},
            ValueError,
            "context: expected a multiple of num_context = 3",
        ),
        (
            (c, ci, ti, p, m),
            {"num_context": 0},
            ValueError,
            "context: expected a multiple of num_context = 0",
        ),
        ((c, ci[:, :2], ti, p, m), {}, ValueError, r"context_index: expected int64 \[4, 3\] as context, got"),
        (
            (c, ci, ti[:5], p, m),
            {"num_context": 2},
            ValueError,
            r"target_index: expected .* B = 2, K\], got \[5",
        ),
        (
            (c, ci, ti.int(), p, m),
            {"num_context": 2},
            TypeError,
            "target_index: expected int64, got torch.int32",
        ),
        (
            (c, ci, ti, p[None], m),
            {"num_context": 2},
            ValueError,
            r"position: expected \[N, 8\], got \[1, 5, 8\]",
        ),
        (
            (c, ci, ti, p[:, :7], m),
            {"num_context": 2},
            ValueError,
            r"position: expected \[N, 8\], got \[5, 7\]",
        ),
        ((c, ci, ti, p, m[0]), {"num_context": 2}, ValueError, r"mask_token: expected \[8\], got \[1, 8\]"),
        (
            (c, ci, ti, p, m[..., :7]),
            {"num_context": 2},
            ValueError,
            r"mask_token: expected \[1, 1, 8\], got",
        ),
    ):
        with pytest.raises(error, match=message):
            assemble_predictor_tokens(*arguments, **options)


@pytest.mark.native
def test_explain(draw_gather: Draw, draw_assembly: Draw) -> None:
    x, index, position = draw_gather()
    assert explain(gather_tokens, x, index, position=position).chosen == "native"
    assert explain("pack_tokens", x, [index]).chosen == "native"
    assert explain(assemble_predictor_tokens, *draw_assembly(), num_context=2).chosen == "native"
    assert explain("token_routing", x, index, position=position.double()).chosen == "reference"
    assert {"assemble_predictor_tokens", "gather_tokens", "pack_tokens"} <= set(dir(jepa_fast))
