"""The Triton kernel: compiled on a GPU, through Triton's interpreter on the CPU (see tests/conftest.py)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast import Rope3D, rope_3d

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bfloat16 is broken.
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE == "cuda" else ()))
HEAD_DIMS = (8, 24, 32, 48, 64, 80, 88, 104, 128)
Draw = Callable[..., tuple[Tensor, Tensor, Rope3D]]
Hold = Callable[..., None]


@pytest.mark.parametrize("pairing", ["tiled", "interleaved"])
@pytest.mark.parametrize("place", range(len(HEAD_DIMS)))
def test_error_budget(draw: Draw, hold: Hold, place: int, pairing: str) -> None:
    dtype = DTYPES[(place + (pairing == "tiled")) % len(DTYPES)]
    hold(*draw(HEAD_DIMS[place], dtype, pairing, device=DEVICE), "triton")


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 70])
@pytest.mark.parametrize("layout", ["shared", "per_sample", "packed"])
def test_positions_and_lengths(draw: Draw, hold: Hold, layout: str, tokens: int) -> None:
    hold(*draw(64, layout=layout, tokens=tokens, device=DEVICE), "triton")


def test_heads_and_layouts(draw: Draw, hold: Hold) -> None:
    for heads in ((1, 1), (3, 1), (2, 5)):
        hold(*draw(32, heads=heads, device=DEVICE), "triton")
    query, key, rope = draw(32, device=DEVICE)
    hold(query.transpose(1, 2).contiguous().transpose(1, 2), key.mT.contiguous().mT, rope, "triton")
    fused = torch.cat([query, key], 2)
    hold(fused[:, :, :4], fused[:, :, 4:], rope, "triton")
    odd = torch.cat([query, query], -1)[..., 3:35]  # rows that do not begin at 16 bytes
    hold(odd, key, rope, "triton")


def test_one_tensor_alone(draw: Draw) -> None:
    query, key, rope = draw(64, device=DEVICE)
    together = rope_3d(query, rope, key, implementation="triton")
    for x, expected in zip((query, key), together, strict=True):
        assert torch.equal(rope_3d(x, rope, implementation="triton"), expected)


def test_other_head_dims_are_refused(draw: Draw) -> None:
    query, _, rope = draw(20, device=DEVICE)
    with pytest.raises(RuntimeError, match="head_dim is 20; the kernel takes multiples of 8 up to 128"):
        rope_3d(query, rope, implementation="triton")


@pytest.mark.gpu
def test_chosen_on_a_gpu_without_synchronisation(draw: Draw, hold: Hold) -> None:
    query, key, rope = draw(64, torch.bfloat16, device="cuda")
    hold(query, key, rope, "auto")
    leaves = [x.requires_grad_() for x in (query, key)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        fresh = Rope3D(rope.positions)
        rotated = rope_3d(leaves[0], fresh, leaves[1])
        torch.autograd.grad(rotated, leaves, rotated)
    finally:
        torch.cuda.set_sync_debug_mode("default")
