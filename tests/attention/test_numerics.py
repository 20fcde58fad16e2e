"""The reference in the working dtype and the native kernel against the float64 reference, within the error budget."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import BlockCausal, BlockSparse, Rope3D, Varlen, masked_attention
from jepa_fast.bench.measure import check_error
from jepa_fast.kernels.attention import native

IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "reference"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIMS = (24, 32, 64, 80, 88, 104, 128)
MASKS = ("none", "varlen", "varlen_causal", "block_causal", "block_sparse")
ROPES = (None, "tiled", "interleaved")
CANARY = 77.0
Draw = Callable[..., Any]
Hold = Callable[[Any, str], Any]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_masks_head_dims_and_ropes(
    draw: Draw, hold: Hold, implementation: str, mask: str, head_dim: int, dtype: torch.dtype
) -> None:
    # So every rotary form meets every mask, head dim and dtype.
    rope = ROPES[(MASKS.index(mask) + HEAD_DIMS.index(head_dim) + DTYPES.index(dtype)) % 3]
    hold(draw(mask, head_dim, rope, dtype), implementation)


@pytest.mark.parametrize("lengths", [(1, 1), (1, 300), (300, 1), (16, 64), (73, 65), (200, 600)])
@pytest.mark.parametrize("mask", ["none", "block_causal", "block_sparse"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_lengths_round_the_tiles(
    draw: Draw, hold: Hold, implementation: str, mask: str, lengths: tuple[int, int]
) -> None:
    if mask == "block_causal" and lengths[0] > lengths[1]:
        pytest.skip("the drawn query offset is the difference of the lengths")
    hold(draw(mask, 64, "tiled", lengths=lengths), implementation)


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (6, 1), (6, 3)])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_heads(draw: Draw, hold: Hold, implementation: str, mask: str, heads: tuple[int, int]) -> None:
    hold(draw(mask, 32, "interleaved", heads=heads), implementation)


@pytest.mark.parametrize("head_dim", [1, 2, 7, 16, 33, 144, 256])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_other_head_dims(draw: Draw, hold: Hold, implementation: str, head_dim: int) -> None:
    hold(draw("block_sparse", head_dim, "tiled" if head_dim % 2 == 0 else None), implementation)


@pytest.mark.parametrize(
    "block_size",
    [(16, 32), (32, 64), (48, 96), (128, 128), (160, 64), (176, 32), (208, 64), (256, 32), (304, 96)],
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sparse_block_sizes(draw: Draw, hold: Hold, implementation: str, block_size: tuple[int, int]) -> None:
    hold(draw("block_sparse", 32, lengths=(300, 290), block_size=block_size), implementation)


@pytest.mark.parametrize("leading", [(), (1,), (4,), (1, 1), (2, 1), (1, 4), (2, 4)])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sparse_masks_broadcast(
    draw: Draw, hold: Hold, implementation: str, leading: tuple[int, ...]
) -> None:
    problem = draw("none")
    dense = torch.rand(*leading, 53, 70, generator=torch.Generator().manual_seed(0)) < 0.3
    hold(replace(problem, mask=BlockSparse.from_dense(dense, (32, 32))), implementation)


@pytest.mark.parametrize("lengths", [(1, 64), (1, 258), (2, 300), (3, 67), (5, 130)])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_few_queries(draw: Draw, hold: Hold, implementation: str, lengths: tuple[int, int]) -> None:
    hold(draw("none", 128, lengths=lengths), implementation)


@pytest.mark.parametrize("step", [1, 2, 64, 258, 1000])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_steps(draw: Draw, hold: Hold, implementation: str, step: int) -> None:
    for offset, lengths in ((0, (600, 600)), (300, (300, 600)), (5, (130, 100))):
        problem = draw("none", lengths=lengths, heads=(1, 1))
        hold(replace(problem, mask=BlockCausal(step, offset)), implementation)


@pytest.mark.parametrize("table", ["fair_autocast", "hf"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_table_precision(
    draw: Draw,
    gradients: Callable[..., tuple[Tensor, ...]],
    oracle: Callable[..., tuple[Tensor, ...]],
    eager: Callable[..., tuple[Tensor, ...]],
    implementation: str,
    dtype: torch.dtype,
    table: str,
) -> None:
    problem = draw("none", 64, "tiled", dtype)
    problem = replace(problem, ropes=tuple(replace(rope, table=table) for rope in problem.ropes))
    found = gradients(problem, implementation=implementation)
    # Eager's own angles may be rounded otherwise: its error is that of plain float32 tables.
    same_angles = replace(problem, ropes=tuple(replace(rope, table="float32") for rope in problem.ropes))
    result = check_error(found, eager(same_angles), oracle(problem))
    assert result.passed, result.reason


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_layouts(draw: Draw, hold: Hold, implementation: str, mask: str) -> None:
    problem = draw(mask, 32, "tiled")
    last = {n: getattr(problem, n) for n in ("query", "key", "value", "grad_out")}
    hold(replace(problem, **{n: x.mT.contiguous().mT for n, x in last.items()}), implementation)
    hold(replace(problem, **{n: torch.cat([x, x], -1)[..., 1:33] for n, x in last.items()}), implementation)
    fused = torch.cat([problem.key, problem.value], -2)  # a view of a fused projection
    hold(replace(problem, key=fused[..., :2, :], value=fused[..., 2:, :]), implementation)
    expanded = {n: x[..., :1, :].expand_as(x) for n, x in last.items()}
    hold(replace(problem, **expanded), implementation)
    if not mask.startswith("varlen"):
        by_head = {n: x.transpose(1, 2).contiguous().transpose(1, 2) for n, x in last.items()}
        hold(replace(problem, **by_head), implementation)


@pytest.mark.parametrize("scale", [0.0, 0.3, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scale(
    draw: Draw,
    gradients: Callable[..., tuple[Tensor, ...]],
    oracle: Callable[..., tuple[Tensor, ...]],
    eager: Callable[..., tuple[Tensor, ...]],
    implementation: str,
    dtype: torch.dtype,
    scale: float,
) -> None:
    problem = draw("block_causal", 32, "tiled", dtype)
    found = gradients(problem, scale=scale, implementation=implementation)
    result = check_error(found, eager(problem, scale), oracle(problem, scale=scale))
    assert result.passed, result.reason


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_large_scores_do_not_overflow(draw: Draw, hold: Hold, implementation: str) -> None:
    problem = draw("none", 64, lengths=(53, 600))
    hold(replace(problem, query=30.0 * problem.query), implementation)
    rising = torch.linspace(-1, 1, 600)[None, :, None, None].expand_as(problem.key)
    hold(replace(problem, key=rising, query=problem.query.abs()), implementation)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_stays_where_it_belongs(
    draw: Draw, gradients: Callable[..., tuple[Tensor, ...]], implementation: str, mask: str
) -> None:
    problem = draw(mask, 32)
    row = (2,) if mask.startswith("varlen") else (1, 10)
    problem.query[*row, 1, 3] = torch.nan
    out, dq, dk, dv = gradients(problem, implementation=implementation)
    if mask != "block_sparse":
        assert out[*row, 1].isnan().all()
        assert dq[*row, 1].isnan().all()
    spoiled = out.isnan().any(-1)
    spoiled[*row, 1] = False
    assert not spoiled.any()
    assert not dk[..., 1, :].isnan().any()  # the key head that query head 1 does not read
    assert not dv[..., 1, :].isnan().any()


def test_nan_of_a_sequence_stays_in_it(draw: Draw, gradients: Callable[..., tuple[Tensor, ...]]) -> None:
    problem = draw("varlen", 32, "tiled")
    for name in ("query", "key", "value"):
        getattr(problem, name)[:3] = torch.nan
    for found in gradients(problem):
        assert not found[5:].isnan().any()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_that_see_nothing(
    draw: Draw, gradients: Callable[..., tuple[Tensor, ...]], implementation: str, mask: str
) -> None:
    problem = draw("none", 32, "tiled")
    packed = mask.startswith("varlen")
    if packed:
        # Of a causal sequence of 21 queries and 11 keys the last 11 queries see something.
        causal = mask == "varlen_causal"
        problem = replace(draw(mask), mask=Varlen.from_lengths([0, 40, 21], [30, 0, 11], causal=causal))
        blind = torch.arange(61) < (50 if causal else 40)
        unseen = torch.arange(41) < 30
    elif mask == "block_sparse":
        dense = torch.ones(53, 70, dtype=torch.bool)
        dense[5], dense[32:], dense[:, 40:] = False, False, False
        problem = replace(problem, mask=BlockSparse.from_dense(dense, (16, 32)))
        blind, unseen = ~dense.any(1), ~dense.any(0)
    else:
        pytest.skip("every query sees a key")
    out, dq, dk, dv = gradients(problem, implementation=implementation)
    by_token = (lambda x: x) if packed else (lambda x: x.transpose(0, 1))
    for zero in (by_token(out)[blind], by_token(dq)[blind], by_token(dk)[unseen], by_token(dv)[unseen]):
        assert zero.numel() > 0
        assert (zero == 0).all()


@pytest.mark.native
@pytest.mark.parametrize("mask", MASKS)
def test_deterministic_whatever_the_threads(
    draw: Draw, gradients: Callable[..., tuple[Tensor, ...]], mask: str
) -> None:
    problem = draw(mask, 64, "tiled", lengths=(200, 300))
    expected = gradients(problem, implementation="native")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            for ours, theirs in zip(gradients(problem, implementation="native"), expected, strict=True):
                assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [7, 24, 64])
@pytest.mark.parametrize("mask", MASKS)
def test_every_output_is_written_and_nothing_else(
    draw: Draw, monkeypatch: pytest.MonkeyPatch, mask: str, head_dim: int, dtype: torch.dtype
) -> None:
    problem = draw(mask, head_dim, dtype=dtype)
    leaves = [x.requires_grad_() for x in (problem.query, problem.key, problem.value)]
    rooms: list[Tensor] = []
    empty = torch.empty

    def poisoned(shape: Any, dtype: torch.dtype) -> Tensor:
        wanted = empty(shape, dtype=dtype, device="meta")
        room = torch.full((wanted.numel() + 64,), torch.nan, dtype=dtype)
        room[:32] = room[-32:] = CANARY
        rooms.append(room)
        return room[32:-32].view(wanted.shape)

    monkeypatch.setattr(native.torch, "empty", poisoned)
    out = masked_attention(*leaves, mask=problem.mask, implementation="native")
    found = torch.autograd.grad(out, leaves, problem.grad_out)
    assert len(rooms) == 5  # out, lse and three gradients
    assert all((room[:32] == CANARY).all() and (room[-32:] == CANARY).all() for room in rooms)
    assert all(x.isfinite().all() for x in (out, *found))
    assert not rooms[1][32:-32].isnan().any()


@pytest.mark.native
def test_saved_log_sum_exp(draw: Draw) -> None:
    from jepa_fast.kernels.attention import reference
    from jepa_fast.kernels.attention.call import Call

    for mask in MASKS:
        problem = draw(mask, 64)
        arguments = (Call(problem.mask, None, None, 0.125), problem.query, problem.key, problem.value)
        torch.testing.assert_close(native.forward(*arguments)[1], reference.forward(*arguments)[1])


def test_positions_of_queries_and_keys_are_their_own(
    draw: Draw, gradients: Callable[..., tuple[Tensor, ...]]
) -> None:
    problem = draw("none", 32, lengths=(20, 20))
    rope = Rope3D(torch.randint(16, (20, 3)))
    one = gradients(replace(problem, ropes=rope))
    pair = gradients(replace(problem, ropes=(rope, rope)))
    for x, y in zip(one, pair, strict=True):
        assert torch.equal(x, y)
