"""bfloat16 by AMX, the matrix units of Intel's CPUs, and without it on them: lengths on all sides of its tiles."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import Varlen
from jepa_fast.kernels.attention import native
from jepa_fast.kernels.attention.call import Call

CPU = Path("/proc/cpuinfo")
WITHOUT = "AVX512_CORE_BF16"
LENGTHS = ((16, 17), (17, 17), (31, 32), (53, 70), (96, 65), (97, 130), (200, 600))  # of queries and keys
PACKED_Q, PACKED_K = (40, 0, 97, 131, 5), (33, 64, 0, 150, 70)
pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(
        not CPU.exists()
        or "amx_bf16" not in CPU.read_text()
        or torch.backends.cpu.get_cpu_capability() != "AVX512",
        reason="expected a CPU with AMX",
    ),
]


@pytest.fixture(params=[None, WITHOUT], ids=["with", "without"])
def amx(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if request.param is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", request.param)


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("head_dim", [1, 24, 32, 64, 80, 104])
@pytest.mark.parametrize("mask", ["none", "block_causal", "block_sparse"])
def test_lengths(draw: Callable[..., Any], hold: Callable[[Any, str], Any], mask: str, head_dim: int) -> None:
    for number, lengths in enumerate(LENGTHS):
        if mask == "block_causal" and lengths[0] > lengths[1]:
            continue  # the drawn query offset is the difference of the lengths
        rope = (None, "tiled", "interleaved")[number % 3] if head_dim % 2 == 0 else None
        hold(draw(mask, head_dim, rope, torch.bfloat16, lengths=lengths), "native")


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences(draw: Callable[..., Any], hold: Callable[[Any, str], Any], causal: bool) -> None:
    problem = draw(
        "none", 64, "tiled", torch.bfloat16, lengths=(sum(PACKED_Q), sum(PACKED_K)), samples=1, heads=(4, 2)
    )
    packed = {name: getattr(problem, name)[0] for name in ("query", "key", "value", "grad_out")}
    ropes = tuple(replace(rope, positions=rope.positions.flatten(0, -2)) for rope in problem.ropes)
    mask = Varlen.from_lengths(PACKED_Q, PACKED_K, causal=causal)
    hold(replace(problem, **packed, ropes=ropes, mask=mask), "native")


@pytest.mark.parametrize("most", ["", "ALL", "AVX512_CORE_AMX", "avx10_1_512_amx_fp16", "SSE41", WITHOUT])
def test_onednn_s_variable_chooses(
    draw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, most: str
) -> None:
    """Sums in another order have other last places."""
    problem = draw("none", 64, dtype=torch.bfloat16, lengths=(300, 300))
    call = Call(mask=None, rope_query=None, rope_key=None, scale=0.125)

    def lse() -> Tensor:
        return native.forward(call, problem.query, problem.key, problem.value)[1]

    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", WITHOUT)
    without = lse()
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    chosen = lse()
    assert not torch.equal(chosen, without)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert torch.equal(lse(), without if most in ("SSE41", WITHOUT) else chosen)


def test_deterministic_whatever_the_threads(
    draw: Callable[..., Any], gradients: Callable[..., tuple[Tensor, ...]]
) -> None:
    problem = draw("block_causal", 80, "tiled", torch.bfloat16, lengths=(200, 300))
    expected = gradients(problem, implementation="native")
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 16):
            torch.set_num_threads(threads)
            for ours, theirs in zip(gradients(problem, implementation="native"), expected, strict=True):
                assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


def test_pytorch_s_own_tiles_are_unharmed(
    draw: Callable[..., Any], gradients: Callable[..., tuple[Tensor, ...]]
) -> None:
    """oneDNN configures the same registers."""
    left, right = (torch.randn(256, 512).bfloat16() for _ in range(2))
    problem = draw("none", 64, dtype=torch.bfloat16, lengths=(200, 300))
    product, attended = left @ right.t(), gradients(problem, implementation="native")
    for _ in range(3):
        assert torch.equal(left @ right.t(), product)
        for ours, before in zip(gradients(problem, implementation="native"), attended, strict=True):
            assert torch.equal(ours, before)
