"""Which kernels serve a call, and with which tiles: one table, read by the launcher and by the gate.

No autotuning: a tile follows from the kernel, the head's width and the architecture. GPU.md says what the figures come
from. This file needs neither Triton nor a GPU.
"""

import itertools
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

AMPERE, CONSUMER, HOPPER, BLACKWELL, ANY = "ampere", "consumer", "hopper", "blackwell", "any"
ARCHITECTURES = {AMPERE: (80,), CONSUMER: (120,), HOPPER: (90,), BLACKWELL: (100,), ANY: (80, 90, 100, 120)}
"""Compute capabilities by the way their tensor cores are fed: from the registers of a warp (sm_80, and sm_86, sm_89
and sm_120, which have 99 KiB of shared memory), from shared memory by four warps, from and to tensor memory. ANY:
float32, which needs none."""

HALF_PRECISION = (AMPERE, CONSUMER, HOPPER, BLACKWELL)


class Tile(NamedTuple):
    """block_m, block_n: queries and keys of one product. num_warps, num_stages: as Triton takes them.
    own_m, own_n: queries and keys that a program of the whole backward owns at a time; 0 elsewhere.
    max_registers: that a thread may have; 0 leaves it to the assembler."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    own_m: int = 0
    own_n: int = 0
    max_registers: int = 0


def family(capability: tuple[int, int]) -> str:
    if capability == (8, 0):
        return AMPERE
    return {9: HOPPER, 10: BLACKWELL, 11: BLACKWELL}.get(capability[0], CONSUMER)


def width(head_dim: int) -> int:
    """Channels that are multiplied: head_dim rounded up to what tensor cores take."""
    return -(-head_dim // MMA_GRANULE) * MMA_GRANULE


def parts(kernel: str, head_dim: int, architecture: str) -> tuple[int, int, int]:
    """Widths of the parts of a head in `kernel`: powers of two, then 0.

    The widest is first, but for the keys' gradients of three parts on sm_120: with the narrowest first ptxas has
    registers for two stages there.
    """
    channels = width(head_dim)
    powers = [1 << bit for bit in reversed(range(channels.bit_length())) if channels >> bit & 1]
    if architecture == CONSUMER and kernel.startswith("key_gradient") and len(powers) == 3:
        powers.reverse()
    first, second, third = (*powers, 0, 0)[:3]
    return first, second, third


def short(head_dim: int) -> int:
    """Tokens up to which the forward takes its short form."""
    return SHORT if width(head_dim) <= 64 else SHORT_WIDE


class Form(NamedTuple):
    """What the choice of kernels depends on.

    sparse: whether the mask is `BlockSparse`. rope: whether rows are to be rotated. longest_q, longest_k: tokens of the
    longest sequence.
    """

    head_dim: int
    architecture: str
    sparse: bool
    rope: bool
    longest_q: int
    longest_k: int

    def has(self, kernel: str) -> bool:
        """Whether there is such a kernel; a sparse mask has its own."""
        return not self.sparse and tile(kernel, self.head_dim, self.architecture) is not None

    @property
    def longest(self) -> int:
        return max(self.longest_q, self.longest_k)


def forward_kernel(form: Form) -> str:
    """The kernel of the forward; one whose name ends in _rope rotates rows itself."""
    if form.sparse:
        return "forward_sparse"
    kernel = "forward"
    if form.longest_q <= short(form.head_dim) and form.has("forward_short"):
        kernel = "forward_short"
    rotates = form.rope and form.longest <= ROPE_IN_KERNEL and form.has(f"{kernel}_rope")
    return f"{kernel}_rope" if rotates else kernel


def backward_kernels(form: Form) -> tuple[str, ...]:
    """The kernel of the whole backward, or those of the keys' and of the queries' gradients."""
    if form.rope and form.longest <= ROPE_IN_KERNEL and form.has("whole_gradient_rope"):
        return ("whole_gradient_rope",)
    if form.longest <= WHOLE and form.has("whole_gradient"):
        return ("whole_gradient",)
    sparse = "_sparse" if form.sparse else ""
    return f"key_gradient{sparse}", f"query_gradient{sparse}"


def kernels(head_dim: int, architecture: str) -> list[str]:
    """Every kernel that some call is served by."""
    # The choice changes after these lengths and nowhere else.
    lengths = (SHORT, SHORT_WIDE, ROPE_IN_KERNEL, WHOLE, WHOLE + 1)
    found = set()
    for sparse, rope, longest_q, longest_k in itertools.product(
        (False, True), (False, True), lengths, lengths
    ):
        form = Form(head_dim, architecture, sparse, rope, longest_q, longest_k)
        found |= {forward_kernel(form), *backward_kernels(form)}
    return sorted(found)


def tile(kernel: str, head_dim: int, architecture: str) -> Tile | None:
    """The tile of `kernel`; None where calls do without: it would spill, or does not pay."""
    if architecture == ANY:
        return _float32(kernel, width(head_dim), head_dim)
    return _HALF[architecture](kernel, width(head_dim), head_dim)


def _hopper(kernel: str, channels: int, head_dim: int) -> Tile | None:
    match kernel:
        case "forward" if channels > 64:
            # Two groups of four warps with 64 queries each, one block to an SM: the fewest passes over the keys.
            return Tile(128, 128, 8, 2)
        case "forward_rope" if channels > 64:
            return None  # up to the length where rows are rotated inside, the short form serves
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
    """Sums stand in tensor memory, whose 512 columns hold each part's products of queries and keys besides: three parts
    leave room for 32 keys to 128 queries. Four warps then have a row of the product in each thread."""
    match kernel:
        case "forward" if channels <= 96:
            # A block takes half of the registers and of tensor memory: two share an SM.
            return Tile(128, 64, 4, 2)
        case "query_gradient" | "query_gradient_sparse" if channels == 112:
            return Tile(128, 32, 4, 2)
        case "forward" | "forward_sparse" | "query_gradient" | "query_gradient_sparse":
            return Tile(128, 64, 8, 2)
        case "forward_short":
            return Tile(64, 64, 4, 2)
        case "key_gradient" if channels == 112:
            return Tile(32, 128, 4, 2)
        case "key_gradient":
            return Tile(64, 128, 8, 2)
        case "key_gradient_sparse" if channels > 64:
            return Tile(32, 64, 8, 2)
        case "key_gradient_sparse":
            return Tile(32 if channels == 48 else 64, 128, 8, 2)
        case "whole_gradient" if channels <= 96:
            # Wider heads have no registers for two stages of two walks.
            return Tile(32, 64 if channels <= 64 else 32, 8, 2, 64, 64)
    return None


def _ampere(kernel: str, channels: int, head_dim: int) -> Tile | None:
    match kernel:
        case "forward":
            return Tile(128, 64, 8, 2)
        case "forward_sparse":
            return Tile(128, 64 if channels <= 32 else 32, 8, 2)
        case "forward_short":
            keys = 64 if channels <= 64 or channels == 112 else 32
            return Tile(64, keys, 4, 2, max_registers=168 if channels <= 32 else 0)
        case "query_gradient" | "query_gradient_sparse":
            return Tile(128, 64 if channels <= 64 else 32, 8, 2)
        case "key_gradient" | "key_gradient_sparse" if channels == 128:
            return Tile(32, 64, 8, 2)
        case "key_gradient" | "key_gradient_sparse" if channels == 112:
            return Tile(16, 64, 4, 2)
        case "key_gradient":
            # Padding takes registers, too: 64 channels fit where 56 do not.
            fits_64 = channels <= 48 or head_dim == 64
            return Tile(64 if fits_64 else 32 if channels <= 64 else 16, 128, 8, 2)
        case "key_gradient_sparse" if channels == 80:
            return Tile(16, 32, 4, 2)
        case "key_gradient_sparse":
            return Tile(64 if channels <= 32 else 32 if channels <= 64 else 16, 128, 8, 2)
        case "whole_gradient" if channels <= 32:
            return Tile(32, 64, 8, 2, 128, 128)
        case "whole_gradient" if channels in (64, 128):
            return Tile(32, 32 if channels == 64 else 64, 8, 2, 64, 64)
    return None


def _consumer(kernel: str, channels: int, head_dim: int) -> Tile | None:
    """As on Ampere, but for heads of three parts, for which ptxas needs some registers more."""
    match kernel:
        case "forward" if channels == 112:
            return Tile(128, 32, 8, 2)
        case "forward_short" if channels == 112:
            return Tile(32, 16, 2, 2)
        case "key_gradient" | "key_gradient_sparse" if channels == 112:
            return Tile(16, 32, 2, 2)
    return _ampere(kernel, channels, head_dim)


_HALF: dict[str, Callable[[str, int, int], Tile | None]] = {
    AMPERE: _ampere,
    CONSUMER: _consumer,
    HOPPER: _hopper,
    BLACKWELL: _blackwell,
}


def _float32(kernel: str, channels: int, head_dim: int) -> Tile | None:
    """By fused multiply-adds, which every architecture has alike: TF32 would not hold the error budget, and three TF32
    products need more registers than a thread has."""
    # Left alone, ptxas spills a few bytes of these kernels for one block more on an SM. With 128 registers an SM holds
    # 16 warps, in as many blocks as they leave.
    warps = 4 if channels <= 32 else 8 if channels <= 64 else 16
    match kernel:
        case "forward" | "forward_sparse":
            return Tile(16 if channels == 64 else 32, 32, warps, 2, max_registers=128)
        case "query_gradient" | "query_gradient_sparse":
            return Tile(16, 32, warps, 2, max_registers=128)
        case "key_gradient" | "key_gradient_sparse":
            # Two sums leave few registers for the addresses of a second stage: none with a sparse mask, with 40
            # channels of 48, and in the widest heads, which have none for a second block either.
            fits_two = kernel == "key_gradient" and channels <= 96 and head_dim != 40
            limit = 128 if channels <= 96 else 255
            return Tile(16, 32, 4 if channels <= 48 else 8, 2 if fits_two else 1, max_registers=limit)
    return None
