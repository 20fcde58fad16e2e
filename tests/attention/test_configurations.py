"""The table of configurations is what the launcher picks from: neither more nor less."""

import itertools
from typing import Any

import pytest
import torch

from jepa_fast import BlockCausal, BlockSparse, Rope3D, Varlen
from jepa_fast.kernels.attention import tiling
from jepa_fast.kernels.attention.call import Call

FAMILIES = (*tiling.HALF_PRECISION, tiling.ANY)
LIMITS = (tiling.SHORT, tiling.SHORT_WIDE, tiling.ROPE_IN_KERNEL, tiling.WHOLE)
LENGTHS = sorted({1, 1000, *(limit + step for limit in LIMITS for step in (-1, 0, 1))})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_length_is_served_by_what_is_listed(family: str) -> None:
    for head_dim in tiling.HEAD_DIMS:
        chosen = set()
        for sparse, rope in itertools.product((False, True), repeat=2):
            for lengths in itertools.product(LENGTHS, repeat=2):
                form = tiling.Form(head_dim, family, sparse, rope, *lengths)
                chosen |= {tiling.forward_kernel(form), *tiling.backward_kernels(form)}
        assert sorted(chosen) == tiling.kernels(head_dim, family)
        assert all(tiling.tile(kernel, head_dim, family) is not None for kernel in chosen)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, torch.bfloat16) for family in tiling.HALF_PRECISION]
    + [(tiling.HOPPER, torch.float16), (tiling.HOPPER, torch.float32)],
)
@pytest.mark.parametrize("head_dim", [8, 64, 72, 80, 104, 128])
def test_launches_and_table_are_the_same(
    monkeypatch: pytest.MonkeyPatch, head_dim: int, family: str, dtype: torch.dtype
) -> None:
    from jepa_fast.kernels.attention import problem, triton_attention
    from jepa_fast.kernels.rope import triton_rope

    launched: dict[str, Any] = {}
    monkeypatch.setattr(problem, "_architecture", lambda device: family)
    monkeypatch.setattr(triton_rope, "launch", lambda *_: None)
    monkeypatch.setattr(triton_attention, "launch", lambda c, *_: launched.setdefault(c.name, c))
    # One length of every stretch between two limits.
    for length_q, length_k in itertools.product((64, 128, 256, 300), repeat=2):
        x, y = (torch.zeros(1, n, 1, head_dim, dtype=dtype) for n in (length_q, length_k))
        tables = [Rope3D(torch.zeros(n, 3)).tables(head_dim, dtype) for n in (length_q, length_k)]
        sparse = BlockSparse.from_dense(torch.ones(length_q, length_k, dtype=torch.bool))
        packed = Varlen.from_lengths([length_q], [length_k])
        for mask, ropes in itertools.product((None, BlockCausal(8), sparse, packed), ([None, None], tables)):
            q, k = (x[0], y[0]) if mask is packed else (x, y)
            call = Call(mask, *ropes, 1.0)
            out, lse = triton_attention.forward(call, q, k, k)
            triton_attention.backward(call, q, k, k, out, lse, out)
    own = (tiling.ANY,) if dtype == torch.float32 else (family,)
    suffixes = {f"{triton_attention.TYPES[dtype]}/D={head_dim}{end}" for end in ("", f"/{own[0]}")}
    listed = {c.name: c for c in triton_attention.configurations() if c.name.partition("/")[2] in suffixes}
    assert launched.keys() == listed.keys()
    assert all(configuration == listed[name] for name, configuration in launched.items())


def test_the_gate_samples_every_kernel_on_every_architecture() -> None:
    from jepa_fast.kernels.attention import triton_attention

    every = {
        (c.family, arch)
        for c in triton_attention.configurations()
        for arch in c.architectures or (80, 90, 100, 120)
    }
    sampled = {
        (c.family, arch)
        for c in triton_attention.configurations()
        if c.sampled
        for arch in c.architectures or (80, 90, 100, 120)
    }
    assert sampled == every


def test_every_head_is_held_in_parts_that_multiply_no_more_than_its_width() -> None:
    kernels = ("forward", "query_gradient", "key_gradient")
    for architecture, head_dim, kernel in itertools.product(FAMILIES, tiling.HEAD_DIMS, kernels):
        parts = tiling.parts(kernel, head_dim, architecture)
        assert all(part & (part - 1) == 0 for part in parts)
        assert sum(parts) == tiling.width(head_dim) < head_dim + tiling.MMA_GRANULE
        assert tiling.tile(kernel, head_dim, architecture) is not None
    assert {head_dim: tiling.parts("forward", head_dim, tiling.HOPPER) for head_dim in (24, 80, 88, 104)} == {
        24: (32, 0, 0),
        80: (64, 16, 0),
        88: (64, 32, 0),
        104: (64, 32, 16),
    }
    assert tiling.parts("key_gradient", 104, tiling.CONSUMER) == (16, 32, 64)


def test_half_precision_has_stages_for_asynchronous_copies() -> None:
    for architecture, head_dim in itertools.product(tiling.HALF_PRECISION, tiling.HEAD_DIMS):
        for kernel in tiling.kernels(head_dim, architecture):
            tile = tiling.tile(kernel, head_dim, architecture)
            assert tile is not None
            assert tile.num_stages > 1, (kernel, head_dim, architecture)
