"""Which tiles a kernel of the attention room works with: one table, read by the launcher and by the gate.

No autotuning: a tile follows from the kernel, the head's width and the architecture. GPU.md says what the figures come
from. This file needs neither Triton nor a GPU.
"""

from typing import NamedTuple

MAX_HEAD_DIM = 128
HEAD_GRANULE = 8  # 16 bytes of half precision: a head's rows then begin where wide accesses can
MMA_GRANULE = 16  # channels that one tensor-core instruction takes at least
PUBLISHED_HEAD_DIMS = (24, 32, 64, 80, 88, 104, 128)

SHORT = 64  # tokens, up to which the forward takes tiles of 64 queries
ROPE_IN_KERNEL = 128  # tokens, up to which kernels rotate rows themselves; the arithmetic is in GPU.md
WHOLE = 256  # tokens, up to which one program forms all gradients of a head

AMPERE, HOPPER, BLACKWELL = "ampere", "hopper", "blackwell"
ARCHITECTURES = {AMPERE: (80, 120), HOPPER: (90,), BLACKWELL: (100,)}
"""Compute capabilities by the way their tensor cores are fed: from the registers of a warp (sm_120 has no other way,
and like sm_86 and sm_89 only 99 KiB of shared memory), from shared memory by four warps, from and to tensor memory."""


class Tile(NamedTuple):
    """block_m, block_n: queries and keys of one product. num_warps, num_stages: as Triton takes them.
    own_m, own_n: queries and keys that a program of the whole backward owns at a time; 0 elsewhere."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    own_m: int = 0
    own_n: int = 0


def family(capability: tuple[int, int]) -> str:
    return {9: HOPPER, 10: BLACKWELL, 11: BLACKWELL}.get(capability[0], AMPERE)


def width(head_dim: int) -> int:
    """Channels that are multiplied: head_dim rounded up to what tensor cores take."""
    return -(-head_dim // MMA_GRANULE) * MMA_GRANULE


def parts(head_dim: int, architecture: str) -> tuple[int, int, int]:
    """Widths of the parts of a head: powers of two, then 0.

    On Blackwell a head is one part, rounded up to a power of two: the sum over the parts of a product would go through
    registers from tensor memory to tensor memory, which costs more than the zeros.
    """
    channels = width(head_dim)
    if architecture == BLACKWELL:
        return 1 << (channels - 1).bit_length(), 0, 0
    powers = [1 << bit for bit in reversed(range(channels.bit_length())) if channels >> bit & 1]
    first, second, third = (*powers, 0, 0)[:3]
    return first, second, third


def tile(kernel: str, head_dim: int, half: bool, architecture: str) -> Tile | None:
    """The tile of `kernel`, a name of `KERNELS`; None where there is none that fits into registers."""
    return Tile(64, 64, 4, 2, 64, 64)


KERNELS = (
    "forward",
    "forward_short",
    "forward_rope",
    "forward_short_rope",
    "forward_sparse",
    "query_gradient",
    "query_gradient_sparse",
    "key_gradient",
    "key_gradient_sparse",
    "whole_gradient",
    "whole_gradient_rope",
)
