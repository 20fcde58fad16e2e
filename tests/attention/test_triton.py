"""The Triton kernels within the error budget: by Triton's interpreter where there is no GPU.

Small tiles keep the interpreter quick and give short sequences several tiles; the last test takes the shipped ones.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import BlockCausal, BlockSparse, Varlen, explain, masked_attention
from jepa_fast.kernels.attention import reference, tiling
from jepa_fast.kernels.attention.call import Call

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE == "cuda" else ()))
HEAD_DIMS = (24, 32, 64, 80, 88, 104, 128)
MASKS = ("none", "varlen", "varlen_causal", "block_causal", "block_sparse")
ROPES = (None, "tiled", "interleaved")
# A sparse mask has kernels of its own, which are the same for long sequences.
PATHS = [
    (mask, path) for path in ("whole", "long") for mask in MASKS if (mask, path) != ("block_sparse", "whole")
]
HEADS, LENGTHS, BLOCK = (2, 1), (19, 41), 32
CANARY = 77.0
Draw = Callable[..., Any]
Hold = Callable[[Any, str], Any]


@pytest.fixture
def triton_attention() -> Any:
    from jepa_fast.kernels.attention import triton_attention

    return triton_attention


@pytest.fixture
def shipped_tiles() -> None:
    """Keeps `small_tiles` away."""


@pytest.fixture(autouse=True)
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel, in-kernel rotation and the whole backward included, with tiles of 16 to 32 rows."""
    if "shipped_tiles" in request.fixturenames:
        return
    from jepa_fast.kernels.attention import triton_attention

    monkeypatch.setattr(tiling, "tile", lambda *_: tiling.Tile(16, 32, 4, 2, 16, 32))
    monkeypatch.setattr(triton_attention, "_SPARSE_BLOCK", BLOCK)


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """ "long": as for long sequences, rotation in a pass and three launches backward."""
    if request.param == "long":
        for limit in ("SHORT", "SHORT_WIDE", "ROPE_IN_KERNEL", "WHOLE"):
            monkeypatch.setattr(tiling, limit, 0)
    return request.param


@pytest.fixture
def small(draw: Draw) -> Draw:
    def make(*arguments: Any, **options: Any) -> Any:
        options = {"heads": HEADS, "lengths": LENGTHS, "block_size": (BLOCK, BLOCK), **options}
        return draw(*arguments, **options).to(DEVICE)

    return make


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("mask", MASKS)
def test_masks_head_dims_and_ropes(
    small: Draw, hold: Hold, mask: str, head_dim: int, dtype: torch.dtype
) -> None:
    # So every rotary form meets every mask, head dim and dtype.
    rope = ROPES[(MASKS.index(mask) + HEAD_DIMS.index(head_dim) + DTYPES.index(dtype)) % 3]
    hold(small(mask, head_dim, rope, dtype, heads=(1, 1), samples=1), "triton")


@pytest.mark.parametrize("path", ["long"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [24, 104])
@pytest.mark.parametrize("mask", MASKS)
def test_long_sequences(
    small: Draw, hold: Hold, path: str, mask: str, head_dim: int, dtype: torch.dtype
) -> None:
    rope = (None, "tiled")[(MASKS.index(mask) + DTYPES.index(dtype)) % 2]
    hold(small(mask, head_dim, rope, dtype, samples=1), "triton")


@pytest.mark.parametrize("architecture", tiling.HALF_PRECISION)
@pytest.mark.parametrize("head_dim", [8, 40, 80, 104, 120])
def test_parts_of_every_architecture(
    small: Draw,
    hold: Hold,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    head_dim: int,
) -> None:
    from jepa_fast.kernels.attention import problem

    monkeypatch.setattr(problem, "_architecture", lambda device: architecture)
    hold(small("block_causal", head_dim, "tiled", torch.float16, heads=(1, 1), samples=1), "triton")


@pytest.mark.parametrize(
    ("architecture", "head_dim", "path"),
    [(tiling.BLACKWELL, 80, "long"), (tiling.BLACKWELL, 104, "long"), (tiling.CONSUMER, 104, "long")],
    indirect=["path"],
)
def test_parts_in_three_launches(
    small: Draw, hold: Hold, monkeypatch: pytest.MonkeyPatch, path: str, architecture: str, head_dim: int
) -> None:
    """On sm_100 products of parts are summed apart, on sm_120 keys' gradients take the narrowest part first."""
    from jepa_fast.kernels.attention import problem

    monkeypatch.setattr(problem, "_architecture", lambda device: architecture)
    hold(small("varlen", head_dim, None, torch.float16, heads=(4, 2), samples=1), "triton")


@pytest.mark.parametrize("heads", [(1, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize(
    ("mask", "path"), [("varlen", "whole"), ("none", "long"), ("block_sparse", "long")], indirect=["path"]
)
def test_heads(small: Draw, hold: Hold, mask: str, path: str, heads: tuple[int, int]) -> None:
    hold(small(mask, 32, "tiled", heads=heads), "triton")


@pytest.mark.parametrize("lengths", [(1, 1), (1, 70), (70, 1), (16, 32), (17, 33), (64, 64)])
@pytest.mark.parametrize(
    ("mask", "path"), [("none", "whole"), ("none", "long"), ("block_sparse", "long")], indirect=["path"]
)
def test_lengths_round_the_tiles(
    small: Draw, hold: Hold, mask: str, path: str, lengths: tuple[int, int]
) -> None:
    hold(small(mask, 32, lengths=lengths, samples=1), "triton")


@pytest.mark.parametrize("step", [1, 7, 16, 33, 1000])
@pytest.mark.parametrize(("offset", "lengths"), [(0, (70, 70)), (40, (30, 70)), (5, (70, 30))])
def test_steps(small: Draw, hold: Hold, step: int, offset: int, lengths: tuple[int, int]) -> None:
    problem = small("none", lengths=lengths, heads=(1, 1), samples=1)
    hold(replace(problem, mask=BlockCausal(step, offset)), "triton")


@pytest.mark.parametrize("leading", [(), (2,), (2, 1), (2, 2)])
def test_sparse_masks_broadcast(small: Draw, hold: Hold, leading: tuple[int, ...]) -> None:
    dense = torch.rand(*leading, *LENGTHS, generator=torch.Generator().manual_seed(0)) < 0.3
    dense[..., :32, :32] = True  # a full block, and with it one that the mask's end cuts
    hold(replace(small("none"), mask=BlockSparse.from_dense(dense.to(DEVICE), (BLOCK, BLOCK))), "triton")


def test_full_blocks_that_reach_past_the_end(small: Draw, hold: Hold) -> None:
    dense = torch.ones(LENGTHS, dtype=torch.bool, device=DEVICE)
    problem = small("none")
    # Keys far below zero: a key past the end, whose logit is 0, would outweigh them all.
    problem = replace(problem, query=problem.query.abs() + 4, key=-(problem.key.abs() + 4))
    hold(replace(problem, mask=BlockSparse.from_dense(dense, (BLOCK, BLOCK))), "triton")
    hold(problem, "triton")


@pytest.mark.parametrize("mask", MASKS)
def test_log_sum_exp(small: Draw, triton_attention: Any, mask: str) -> None:
    problem = small(mask)
    call = Call(problem.mask, None, None, 0.3)
    tensors = (problem.query, problem.key, problem.value)
    lse = triton_attention.forward(call, *tensors)[1]
    expected = reference.forward(call, *(x.double() for x in tensors))[1]
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse, expected.float(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "path"),
    [("none", "whole"), ("none", "long"), ("varlen", "whole"), ("block_sparse", "long")],
    indirect=["path"],
)
def test_layouts(small: Draw, hold: Hold, mask: str, path: str) -> None:
    problem = small(mask, 32, "tiled", lengths=(17, 20))
    names = ("query", "key", "value", "grad_out")
    tensors = {name: getattr(problem, name) for name in names}
    layouts = {
        "last dimension not contiguous": lambda x: x.mT.contiguous().mT,
        "rows with gaps": lambda x: torch.cat([x, x], -1)[..., :32],
        "misaligned rows": lambda x: torch.cat([x, x], -1)[..., 1:33],
        "heads before tokens": lambda x: x.transpose(-2, -3).contiguous().transpose(-2, -3),
        "one head expanded": lambda x: x[..., :1, :].expand_as(x),
    }
    for layout in layouts.values():
        hold(replace(problem, **{name: layout(x) for name, x in tensors.items()}), "triton")


@pytest.mark.parametrize(("mask", "path"), PATHS, indirect=["path"])
def test_every_output_is_written_and_nothing_else(
    small: Draw,
    gradients: Callable[..., tuple[Tensor, ...]],
    monkeypatch: pytest.MonkeyPatch,
    mask: str,
    path: str,
) -> None:
    problem = small(mask)
    expected = gradients(problem, implementation="triton")
    rooms: list[Tensor] = []
    empty = torch.empty

    def poisoned(*shape: Any, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        wanted = empty(*shape, dtype=dtype, device="meta")
        room = torch.full((wanted.numel() + 32,), torch.nan, dtype=dtype, device=device)
        room[:16] = room[-16:] = CANARY
        rooms.append(room)
        return room[16:-16].view(wanted.shape)

    monkeypatch.setattr(torch, "empty", poisoned)
    found = gradients(problem, implementation="triton")
    monkeypatch.undo()
    assert all(torch.equal(ours, true) for ours, true in zip(found, expected, strict=True))
    assert len(rooms) >= 5  # out, its statistics, three gradients
    assert all((room[:16] == CANARY).all() and (room[-16:] == CANARY).all() for room in rooms)


@pytest.mark.parametrize("mask", ["none", "block_causal"])
def test_what_is_not_a_number_stays_where_it_is(small: Draw, mask: str) -> None:
    problem = small(mask)
    problem.query[0, 3, 1, 5] = torch.nan
    out = masked_attention(
        problem.query, problem.key, problem.value, mask=problem.mask, implementation="triton"
    )
    bad = out.isnan()
    assert bad[0, 3, 1].all()
    assert bad.sum() == out.shape[-1]


def test_rows_and_sequences_without_keys(small: Draw, gradients: Callable[..., tuple[Tensor, ...]]) -> None:
    problem = small("none", lengths=(20, 10))
    dense = torch.zeros(20, 10, dtype=torch.bool, device=DEVICE)
    nothing = replace(problem, mask=BlockSparse.from_dense(dense, (BLOCK, BLOCK)))
    for result in gradients(nothing, implementation="triton"):
        assert not result.any()
    packed = [getattr(problem, name)[0] for name in ("query", "key", "value")]
    mask = Varlen.from_lengths((7, 0, 13), (0, 10, 0), device=DEVICE)
    leaves = [x.detach().requires_grad_() for x in packed]
    out = masked_attention(*leaves, mask=mask, implementation="triton")
    out.sum().backward()
    assert not out.any()
    assert not any(leaf.grad.any() for leaf in leaves)


@pytest.mark.usefixtures("shipped_tiles")
@pytest.mark.parametrize(
    ("head_dim", "options", "reason"),
    [
        (36, {}, "head_dim is 36; the kernel takes multiples of 8 up to 128"),
        (136, {}, "head_dim is 136; the kernel takes multiples of 8 up to 128"),
        (32, {"dtype": torch.float64}, "the tensors are torch.float64"),
        (32, {"scale": -1.0}, "scale is -1.0; the kernel takes finite numbers above 0"),
        (32, {"block": (64, 128)}, "block_size is (64, 128); the kernel takes multiples of 128"),
    ],
)
def test_refusals(head_dim: int, options: dict[str, Any], reason: str) -> None:
    x = torch.zeros(1, 130, 1, head_dim, dtype=options.get("dtype"), device=DEVICE)
    mask = None
    if "block" in options:
        dense = torch.ones(130, 130, dtype=torch.bool, device=DEVICE)
        mask = BlockSparse.from_dense(dense, options["block"])
    refusals = explain("attention", x, x, x, mask=mask, scale=options.get("scale")).refusals
    assert any(reason in refusal for refusal in refusals["triton"])


# Up to 128 tokens, up to 256 and beyond other kernels serve, but not a sparse mask, nor in float32.
SHIPPED = [
    *(("none", "tiled", torch.float16, lengths) for lengths in [(50, 60), (70, 140), (260, 140)]),
    *(("block_causal", None, torch.float16, lengths) for lengths in [(50, 60), (70, 140), (140, 260)]),
    ("block_sparse", None, torch.float16, (130, 140)),
    *((mask, None, torch.float32, (35, 70)) for mask in ("none", "block_causal", "block_sparse")),
]


@pytest.mark.usefixtures("shipped_tiles")
@pytest.mark.parametrize(("mask", "rope", "dtype", "lengths"), SHIPPED)
def test_shipped_tiles(
    draw: Draw, hold: Hold, mask: str, rope: str | None, dtype: torch.dtype, lengths: tuple[int, int]
) -> None:
    problem = draw(mask, 80, rope, dtype, heads=(1, 1), lengths=lengths, samples=1, block_size=(128, 128))
    hold(problem.to(DEVICE), "triton")
