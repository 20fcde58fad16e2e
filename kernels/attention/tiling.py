"""Which tiles a kernel of the attention room works with: one table, read by the launcher and by the gate.

No autotuning: a tile follows from the kernel, the head's width and the architecture. GPU.md says what the figures come
from. This file needs neither Triton nor a GPU.
"""

from collections.abc import Callable
from typing import NamedTuple

MAX_HEAD_DIM = 128
HEAD_GRANULE = 8  # 16 bytes of half precision: a head's rows then begin where wide accesses can
MMA_GRANULE = 16  # channels that one tensor-core instruction takes at least
HEAD_DIMS = tuple(range(HEAD_GRANULE, MAX_HEAD_DIM + 1, HEAD_GRANULE))
PUBLISHED_HEAD_DIMS = (24, 32, 64, 80, 88, 104, 128)

SHORT = 64  # tokens, up to which the forward takes tiles of 64 queries,
SHORT_WIDE = 128  # and for heads of more than 64 channels, of whose large tiles an SM holds a single one
ROPE_IN_KERNEL = 128  # tokens, up to which kernels rotate rows themselves; the arithmetic is in GPU.md
WHOLE = 256  # tokens, up to which one program forms all gradients of a head

AMPERE, HOPPER, BLACKWELL, ANY = "ampere", "hopper", "blackwell", "any"
ARCHITECTURES = {AMPERE: (80, 120), HOPPER: (90,), BLACKWELL: (100,), ANY: (80, 90, 100, 120)}
"""Compute capabilities by the way their tensor cores are fed: from the registers of a warp (sm_120 has no other way,
and like sm_86 and sm_89 only 99 KiB of shared memory), from shared memory by four warps, from and to tensor memory.
ANY: float32, which needs none."""

HALF_PRECISION = (AMPERE, HOPPER, BLACKWELL)


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
    registers from tensor memory to tensor memory, which costs more than the zeros. On Ampere three parts need more
    registers than a thread has.
    """
    channels = width(head_dim)
    powers = [1 << bit for bit in reversed(range(channels.bit_length())) if channels >> bit & 1]
    if architecture == BLACKWELL or (architecture == AMPERE and len(powers) > 2):
        powers = [1 << (channels - 1).bit_length()]
    first, second, third = (*powers, 0, 0)[:3]
    return first, second, third


def short(head_dim: int) -> int:
    """Tokens up to which the forward takes its short form."""
    return SHORT if width(head_dim) <= 64 else SHORT_WIDE


def tile(kernel: str, head_dim: int, architecture: str) -> Tile | None:
    """The tile of `kernel`, one of `KERNELS`; None where the launcher does without: the kernel would spill, or does not
    pay."""
    if architecture == ANY:
        return _float32(kernel, width(head_dim))
    return _HALF[architecture](kernel, sum(parts(head_dim, architecture)), head_dim)


def _hopper(kernel: str, channels: int, head_dim: int) -> Tile | None:
    match kernel:
        case "forward" | "forward_rope" if channels > 64:
            # Two groups of four warps with 64 queries each, one block to an SM: the fewest passes over the keys.
            return Tile(128, 128 if kernel == "forward" or channels == 80 else 64, 8, 2)
        case "forward" | "forward_rope" | "forward_sparse":
            # At most 128 registers: a second block fills the tensor cores while this one is at its softmax.
            return Tile(128, 64, 8, 2)
        case "forward_short" | "forward_short_rope":
            # Blocks of four warps are kept from parts 32 wide (a hazard of Triton 3.7.1) and from heads of 128.
            return Tile(64, 64, 4 if channels in (16, 64, 80) else 8, 2)
        case "query_gradient" | "query_gradient_sparse":
            return Tile(128, 64, 8, 2)
        case "key_gradient_sparse":
            return Tile(64 if channels <= 32 else 32 if channels <= 96 else 16, 128, 8, 2)
        case "key_gradient":
            return Tile(64 if channels <= 64 else 32, 128, 8, 2)
        case "whole_gradient":
            own = 128 if channels <= 80 else 64
            return Tile(32, 64, 8, 2, own, own)
        case "whole_gradient_rope" if channels <= 64:
            return Tile(32, 64, 8, 2, 64, 64)
    return None


def _blackwell(kernel: str, channels: int, head_dim: int) -> Tile | None:
    match kernel:
        case "forward" | "forward_sparse" | "query_gradient" | "query_gradient_sparse":
            return Tile(128, 64, 8, 2)
        case "forward_short":
            return Tile(64, 64, 4, 2)
        case "key_gradient_sparse" if channels > 64:
            return Tile(32, 64, 8, 2)
        case "key_gradient" | "key_gradient_sparse":
            return Tile(64 if channels <= 64 else 32, 128, 8, 2)
        case "whole_gradient":
            return Tile(32, 64, 8, 2 if channels <= 64 else 1, 64, 64)
    return None


def _ampere(kernel: str, channels: int, head_dim: int) -> Tile | None:
    match kernel:
        case "forward":
            return Tile(128, 64, 8, 2)
        case "forward_sparse":
            return Tile(128, 64 if channels <= 32 else 32, 8, 2)
        case "forward_short":
            return Tile(64, 64 if channels <= 80 else 32, 4, 2)
        case "query_gradient" | "query_gradient_sparse":
            return Tile(128, 64 if channels <= 64 else 32, 8, 2)
        case "key_gradient" | "key_gradient_sparse" if channels == 128:
            return Tile(32, 64, 8, 2)
        case "key_gradient":
            # Padding takes registers, too: 64 and 80 channels fit where 56 and 72 do not.
            fits_64 = channels <= 48 or head_dim == 64
            fits_32 = channels <= 64 or head_dim == 80
            return Tile(64 if fits_64 else 32 if fits_32 else 16, 128, 8, 2)
        case "key_gradient_sparse" if channels == 80:
            return Tile(16, 32, 4, 2)
        case "key_gradient_sparse":
            return Tile(64 if channels <= 32 else 32 if channels <= 64 else 16, 128, 8, 2)
        case "whole_gradient" if channels <= 32:
            return Tile(32, 64, 8, 2, 128, 128)
        case "whole_gradient" if channels in (64, 128):
            return Tile(32, 32 if channels == 64 else 64, 8, 2, 64, 64)
    return None


_HALF: dict[str, Callable[[str, int, int], Tile | None]] = {
    AMPERE: _ampere,
    HOPPER: _hopper,
    BLACKWELL: _blackwell,
}


def _float32(kernel: str, channels: int) -> Tile | None:
    """By fused multiply-adds, which every architecture has alike: TF32 would not hold the error budget, and three TF32
    products need more registers than a thread has."""
    narrow = channels <= 64
    match kernel:
        case "forward" | "forward_sparse":
            return Tile(32, 32, 4, 2) if narrow else Tile(16, 32, 8, 2)
        case "query_gradient" | "key_gradient":
            return Tile(16, 32, 4 if narrow else 8, 2)
        case "query_gradient_sparse" | "key_gradient_sparse":
            return Tile(16, 32, 2 if narrow else 8, 2)
    return None


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
