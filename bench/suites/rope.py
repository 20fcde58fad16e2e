"""Rotary positions by themselves, query and key, forward and backward, against the published axis-by-axis form."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import jepa_fast
from jepa_fast import Rope3D
from jepa_fast.bench.baselines.attention import vjepa2_positions, vjepa2_rotary
from jepa_fast.bench.measure import Case, ErrorCheck, Trial, check_error
from jepa_fast.bench.suites.attention import dtype_name, token_ids

GRID = 16  # of patches, 256 px

# name, B, N, heads, head_dim
ON_A_GPU = (
    ("V-JEPA 2 ViT-L 256 clip", 24, 2048, 16, 64),
    ("V-JEPA 2 ViT-H 256 clip", 24, 2048, 16, 80),
    ("V-JEPA 2 ViT-g 256 clip", 24, 2048, 22, 64),
    ("V-JEPA 2 ViT-g 256 context", 24, 508, 22, 64),
    ("V-JEPA 2 predictor", 24, 1460, 12, 32),
    ("V-JEPA 2 ViT-g 64 frames", 6, 8192, 22, 64),
)


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        yield _case("V-JEPA 2 ViT-S context", (4, 512, 6, 64), dtype)
        yield _case(
            "V-JEPA 2 ViT-S context, first layer", (4, 512, 6, 64), dtype, new_tables=True, quick=False
        )
        yield _case("V-JEPA 2.1 predictor", (4, 512, 12, 32), dtype, pairing="interleaved", quick=False)
    for name, *sizes in ON_A_GPU:
        shape = (sizes[0], sizes[1], sizes[2], sizes[3])
        yield _case(name, shape, torch.bfloat16, quick=False, needs_cuda=True)


def _case(label: str, sizes: tuple[int, int, int, int], dtype: torch.dtype, **options: Any) -> Case:
    quick, needs_cuda = options.pop("quick", True), options.pop("needs_cuda", False)
    batch, tokens, heads, dim = sizes
    return Case(
        op="rope_3d",
        shape=f"{label}, q and k fwd+bwd, B={batch} N={tokens} {heads}x{dim}",
        dtype=dtype_name(dtype),
        build=partial(_build, sizes, dtype, **options),
        quick=quick,
        needs_cuda=needs_cuda,
    )


def _build(
    sizes: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    pairing: str = "tiled",
    new_tables: bool = False,
) -> Trial:
    """new_tables: the first of the layers that share a `Rope3D`, which makes its tables."""
    batch, tokens, heads, dim = sizes
    random = torch.Generator().manual_seed(0)
    query, key, *upstream = (torch.randn(batch, tokens, heads, dim, generator=random) for _ in range(4))
    query, key = (x.to(device, dtype).requires_grad_() for x in (query, key))
    upstream = [x.to(device, dtype) for x in upstream]
    positions = vjepa2_positions(token_ids(batch, tokens, random).to(device), GRID, GRID)
    rope = Rope3D(torch.stack(positions, dim=-1), pairing=pairing)
    # The published passes over masked clips repeat ids over heads before they take positions from them.
    by_head = [p[:, None].expand(-1, heads, -1).contiguous() for p in positions]
    eager = partial(_eager, query, key, upstream, by_head, pairing)
    return Trial(
        ours=partial(_ours, query, key, upstream, rope, new_tables=new_tables),
        check=partial(_check, query, key, upstream, rope, eager),
        implementation=jepa_fast.explain("rope", query, rope, key).chosen,
        baselines={"V-JEPA 2 eager": eager},
    )


def _ours(
    query: Tensor,
    key: Tensor,
    upstream: list[Tensor],
    rope: Rope3D,
    *,
    new_tables: bool = False,
    implementation: str = "auto",
) -> tuple[Tensor, ...]:
    if new_tables:
        rope = Rope3D(rope.positions, pairing=rope.pairing)
    rotated = jepa_fast.rope_3d(query, rope, key, implementation=implementation)
    return *rotated, *torch.autograd.grad(rotated, (query, key), upstream)


def _eager(
    query: Tensor, key: Tensor, upstream: list[Tensor], positions: list[Tensor], pairing: str
) -> tuple[Tensor, ...]:
    interleaved = pairing == "interleaved"
    rotated = [
        vjepa2_rotary(x.transpose(1, 2), positions, interleaved=interleaved).transpose(1, 2)
        for x in (query, key)
    ]
    return *rotated, *torch.autograd.grad(rotated, (query, key), upstream)


def _check(query: Tensor, key: Tensor, upstream: list[Tensor], rope: Rope3D, eager: Any) -> ErrorCheck:
    exact_query, exact_key = (x.detach().double().requires_grad_() for x in (query, key))
    oracle = _ours(exact_query, exact_key, [x.double() for x in upstream], rope, implementation="reference")
    return check_error(_ours(query, key, upstream, rope), eager(), oracle)
