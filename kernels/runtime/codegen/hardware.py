"""What one streaming multiprocessor (SM) of each architecture holds, and the occupancy that follows.

Source: CUDA Programming Guide, appendix "Compute Capabilities", table of technical specifications.
"""

from dataclasses import dataclass

REGISTERS_PER_PARTITION = 16_384
"""32-bit registers in each of the four partitions of an SM; a warp lives in one of them."""
PARTITIONS = 4
REGISTER_UNIT = 8
"""Registers per thread are handed out in multiples of this: 256 for a warp of 32 threads."""
SHARED_UNIT = 128
SHARED_RESERVED = 1024
"""Bytes of shared memory that the system keeps for every resident block, beside what the kernel asks for."""


@dataclass(frozen=True)
class Architecture:
    """Limits of one compute capability. Shared memory is in bytes."""

    shared_per_block: int
    shared_per_sm: int
    warps_per_sm: int
    blocks_per_sm: int


KIB = 1024
ARCHITECTURES = {
    80: Architecture(163 * KIB, 164 * KIB, warps_per_sm=64, blocks_per_sm=32),  # A100
    90: Architecture(227 * KIB, 228 * KIB, warps_per_sm=64, blocks_per_sm=32),  # H100, H200
    100: Architecture(227 * KIB, 228 * KIB, warps_per_sm=64, blocks_per_sm=32),  # B200
    120: Architecture(99 * KIB, 100 * KIB, warps_per_sm=48, blocks_per_sm=24),  # RTX 50, RTX PRO 6000
}


def occupancy(arch: int, registers: int, shared_bytes: int, num_warps: int) -> float:
    """Resident warps over the SM's limit, in [0, 1], for a grid that is large enough.

    arch: key of `ARCHITECTURES`. registers: 32-bit registers per thread. shared_bytes, num_warps: per block.
    """
    limits = ARCHITECTURES[arch]
    warp_registers = 32 * _round_up(max(registers, 1), REGISTER_UNIT)
    blocks = min(
        limits.blocks_per_sm,
        limits.warps_per_sm // num_warps,
        PARTITIONS * (REGISTERS_PER_PARTITION // warp_registers) // num_warps,
        limits.shared_per_sm // (_round_up(shared_bytes, SHARED_UNIT) + SHARED_RESERVED),
    )
    return blocks * num_warps / limits.warps_per_sm


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@dataclass(frozen=True)
class Throughput:
    """What one SM does in a clock. README.md has the sources.

    memory_bytes: its share of the memory's bandwidth. cache_bytes: what passes the port between it and the L2 cache.
    tensor_operations: of half precision, dense, two to a multiply-add. special_functions: values.
    """

    memory_bytes: float
    cache_bytes: float
    tensor_operations: float
    special_functions: float


ISSUED_PER_CLOCK = PARTITIONS
"""Warp instructions that an SM starts in a clock, one from each partition."""
THROUGHPUT = {
    80: Throughput(2039e9 / (108 * 1.41e9), 64, 2048, 16),  # A100 SXM, 80 GB
    90: Throughput(4.8e12 / (132 * 1.83e9), 64, 4096, 16),  # H200 SXM
    100: Throughput(8.0e12 / (148 * 1.85e9), 64, 8192, 16),  # B200
}
"""By architecture. sm_120 is left out: from the RTX 5050 to the RTX PRO 6000 its memory differs sixfold."""
