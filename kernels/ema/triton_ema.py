"""EMA update on the GPU: one launch for the whole list of tensors, one program per row of the plan."""

# mypy: allow-untyped-defs
import functools
from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.configuration import KernelConfiguration
from ..runtime.launch import launch
from .plan import COPY, FLOAT_TYPES, Plan

# 4 warps x 32 lanes x 8 values: one 16-byte access per lane for half precision, two for float32.
_NUM_WARPS = 4
_BLOCK = 1024
_BLOCK_BYTES = 4 * 32 * 16

_MIXED = (
    -1
)  # KIND of the kernel that reads each row's kind; below, the kernel is compiled for one kind (and copies)
_TYPE_NAMES = ("float32", "bfloat16", "float16")


@triton.jit
def _lerp(target, source, weight):
    """target + weight * (source - target), formed from the nearer end as torch.lerp does."""
    near_target = weight < 0.5
    coefficient = tl.where(near_target, weight, weight - 1.0)
    return tl.fma(tl.zeros_like(target) + coefficient, source - target, tl.where(near_target, target, source))


@triton.jit
def _update_row(target, source, count, weight, T: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr):
    o_block = tl.arange(0, BLOCK)
    p_target = target.to(tl.pointer_type(T))
    p_source = source.to(tl.pointer_type(S))
    # Whole blocks of aligned tensors need no mask, so that they move 16 bytes per access.
    n_vector = tl.where((target | source) % 16 == 0, count // BLOCK * BLOCK, 0)
    for start in range(0, n_vector, BLOCK):
        p_t = tl.multiple_of(p_target + start, 16) + o_block  # [BLOCK]
        p_s = tl.multiple_of(p_source + start, 16) + o_block  # [BLOCK]
        b_target = tl.load(p_t).to(tl.float32)  # [BLOCK]
        b_source = tl.load(p_s).to(tl.float32)  # [BLOCK]
        tl.store(p_t, _lerp(b_target, b_source, weight).to(T))
    for start in range(n_vector, count, BLOCK):
        m_block = start + o_block < count  # [BLOCK]
        b_target = tl.load(p_target + start + o_block, mask=m_block, other=0.0).to(tl.float32)  # [BLOCK]
        b_source = tl.load(p_source + start + o_block, mask=m_block, other=0.0).to(tl.float32)  # [BLOCK]
        tl.store(p_target + start + o_block, _lerp(b_target, b_source, weight).to(T), mask=m_block)


@triton.jit
def _copy_row(target, source, count, BLOCK: tl.constexpr):
    o_block = tl.arange(0, BLOCK)
    p_target = target.to(tl.pointer_type(tl.uint8))
    p_source = source.to(tl.pointer_type(tl.uint8))
    n_vector = tl.where((target | source) % 16 == 0, count // BLOCK * BLOCK, 0)
    for start in range(0, n_vector, BLOCK):
        b_source = tl.load(tl.multiple_of(p_source + start, 16) + o_block)  # [BLOCK]
        tl.store(tl.multiple_of(p_target + start, 16) + o_block, b_source)
    for start in range(n_vector, count, BLOCK):
        m_block = start + o_block < count  # [BLOCK]
        b_source = tl.load(p_source + start + o_block, mask=m_block)  # [BLOCK]
        tl.store(p_target + start + o_block, b_source, mask=m_block)


@triton.jit
def ema_update_kernel(
    p_chunks,  # int64 [rows, 4]: target address, source address, count, kind (plan.py)
    p_momentum,  # float32 [1], read if MOMENTUM_IN_MEMORY
    weight,  # 1 - momentum otherwise
    KIND: tl.constexpr,
    COPY_KIND: tl.constexpr,
    MOMENTUM_IN_MEMORY: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
):
    p_row = p_chunks + tl.program_id(0).to(tl.int64) * 4
    target = tl.load(p_row)
    source = tl.load(p_row + 1)
    count = tl.load(p_row + 2).to(tl.int32)  # at most plan.CHUNK values
    kind = tl.load(p_row + 3).to(tl.int32)
    if MOMENTUM_IN_MEMORY:
        weight = 1.0 - tl.load(p_momentum)
    if kind == COPY_KIND:
        _copy_row(target, source, count, BLOCK_BYTES)
    else:
        # 3 * target + source, in the order float32, bfloat16, float16.
        for pair in tl.static_range(9):
            if pair == KIND or (KIND < 0 and kind == pair):
                T: tl.constexpr = tl.float32 if pair < 3 else (tl.bfloat16 if pair < 6 else tl.float16)
                S: tl.constexpr = (
                    tl.float32 if pair % 3 == 0 else (tl.bfloat16 if pair % 3 == 1 else tl.float16)
                )
                _update_row(target, source, count, weight, T, S, BLOCK)


def _is_common(kind: int) -> bool:
    """Float16 goes with nothing but itself; the mixed form has all pairs."""
    target, source = (FLOAT_TYPES[i] for i in divmod(kind, len(FLOAT_TYPES)))
    return target == source or torch.float16 not in (target, source)


@functools.cache
def _configuration(kind: int, momentum_in_memory: bool) -> KernelConfiguration:
    if kind == _MIXED:
        pair = "mixed"
    else:
        pair = f"{_TYPE_NAMES[kind // len(FLOAT_TYPES)]}<-{_TYPE_NAMES[kind % len(FLOAT_TYPES)]}"
    return KernelConfiguration(
        name=f"ema_update/{pair}" + ("/momentum_in_memory" if momentum_in_memory else ""),
        kernel=ema_update_kernel,
        signature={"p_chunks": "*i64", "p_momentum": "*fp32", "weight": "fp32"},
        constexprs={
            "KIND": kind,
            "COPY_KIND": COPY,
            "MOMENTUM_IN_MEMORY": momentum_in_memory,
            "BLOCK": _BLOCK,
            "BLOCK_BYTES": _BLOCK_BYTES,
        },
        divisible_by_16=("p_chunks",),
        num_warps=_NUM_WARPS,
        sampled=kind in (0, _MIXED) or (not momentum_in_memory and _is_common(kind)),
    )


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    for kind in (*range(len(FLOAT_TYPES) ** 2), _MIXED):
        for momentum_in_memory in (False, True):
            yield _configuration(kind, momentum_in_memory)


def why_not(plan: Plan) -> list[str]:
    return plan.refusals


def update_(plan: Plan, targets: list[Tensor], sources: list[Tensor], momentum: float | Tensor) -> None:
    rows = plan.chunks.shape[0]
    if rows == 0:
        return
    pairs = plan.kinds - {COPY}
    kind = next(iter(pairs)) if len(pairs) == 1 else _MIXED
    in_memory = isinstance(momentum, Tensor)
    # Triton wants a tensor where a pointer is declared, so a momentum given by value passes the table, unread.
    pointer, weight = (momentum, 0.0) if isinstance(momentum, Tensor) else (plan.chunks, 1.0 - momentum)
    launch(_configuration(kind, in_memory), (rows,), plan.chunks, pointer, weight)
