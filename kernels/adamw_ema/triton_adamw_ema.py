"""The step on the GPU: one launch for all tensors, one program per row of the plan.

A small launch before it counts the steps and forms each tensor's coefficients, so that nothing about a step is known
to the host alone. Clipping adds a pass over the gradients before that.
"""

# mypy: allow-untyped-defs
import functools
import math
from collections.abc import Iterable

import torch
import triton
import triton.language as tl

from ..runtime.configuration import KernelConfiguration
from ..runtime.launch import launch
from .plan import ABSENT, BYTES, COLUMNS, FLOAT_TYPES
from .work import MOMENTUM, NORM_EPS, Work

# 4 warps x 32 lanes x 4 values: one 16-byte access per lane and float32 tensor. Twice that spills, as seven tensors'
# values are in flight at once; one value per lane where each has a mask and an address of its own.
_NUM_WARPS = 4
_BLOCK = 512
_TAIL_BLOCK = 128
# The norm reads one tensor alone: 8 values per lane.
_NORM_BLOCK = 1024
_BLOCK_BYTES = 4 * 32 * 16
_TENSORS_PER_PROGRAM = 128

# Columns of the coefficients, float32.
_COEFFICIENTS = 10
_TYPE_NAMES = ("none", "float32", "bfloat16", "float16")


@triton.jit
def _lerp(target, source, weight):
    """target + weight * (source - target), formed from the nearer end as torch.lerp does."""
    near_target = weight < 0.5
    coefficient = tl.where(near_target, weight, weight - 1.0)
    return tl.fma(tl.zeros_like(target) + coefficient, source - target, tl.where(near_target, target, source))


@triton.jit
def _pointers(address, start, o_block, T: tl.constexpr, ALIGNED: tl.constexpr):
    p_start = address.to(tl.pointer_type(T)) + start
    if ALIGNED:
        p_start = tl.multiple_of(p_start, 16)
    return p_start + o_block


@triton.jit
def _load(pointers, m_block, ALIGNED: tl.constexpr):
    if ALIGNED:
        return tl.load(pointers).to(tl.float32)
    return tl.load(pointers, mask=m_block, other=0.0).to(tl.float32)


@triton.jit
def _store(pointers, value, m_block, T: tl.constexpr, ALIGNED: tl.constexpr):
    if ALIGNED:
        tl.store(pointers, value.to(T))
    else:
        tl.store(pointers, value.to(T), mask=m_block)


@triton.jit
def _follow(
    b_parameter, start, end, teacher, copy, teacher_copy, weight, T: tl.constexpr, C: tl.constexpr,
    HAS_COPIES: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The teacher and the copies, from the new values in registers."""
    o_block = tl.arange(0, BLOCK)
    m_block = start + o_block < end  # [BLOCK]
    if HAS_COPIES:  # noqa: SIM102 (one is known at compile time, the other is not)
        if copy != 0:
            _store(_pointers(copy, start, o_block, C, ALIGNED), b_parameter, m_block, C, ALIGNED)
    if teacher != 0:
        p_teacher = _pointers(teacher, start, o_block, T, ALIGNED)  # [BLOCK]
        b_teacher = _lerp(_load(p_teacher, m_block, ALIGNED), b_parameter, weight)  # [BLOCK]
        _store(p_teacher, b_teacher, m_block, T, ALIGNED)
        if HAS_COPIES:  # noqa: SIM102
            if teacher_copy != 0:
                _store(_pointers(teacher_copy, start, o_block, C, ALIGNED), b_teacher, m_block, C, ALIGNED)


@triton.jit
def _update_run(
    first, end, p_row, gradient, p_c, G: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
    HAS_COPIES: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Values `first` to `end` of one tensor: whole blocks without a mask if ALIGNED, else the rest under one."""
    parameter = tl.load(p_row)
    exp_avg = tl.load(p_row + 1)
    exp_avg_sq = tl.load(p_row + 2)
    teacher = tl.load(p_row + 4)
    copy = tl.load(p_row + 5)
    teacher_copy = tl.load(p_row + 6)
    weight = tl.load(p_c + 7)
    o_block = tl.arange(0, BLOCK)
    if gradient != 0:
        decay, weight1 = tl.load(p_c), tl.load(p_c + 1)
        beta2, weight2 = tl.load(p_c + 2), tl.load(p_c + 3)
        correction2, eps = tl.load(p_c + 4), tl.load(p_c + 5)
        step_size, scale = tl.load(p_c + 6), tl.load(p_c + 8)
        for start in range(first, end, BLOCK):
            m_block = start + o_block < end  # [BLOCK]
            p_parameter = _pointers(parameter, start, o_block, tl.float32, ALIGNED)  # [BLOCK]
            p_exp_avg = _pointers(exp_avg, start, o_block, tl.float32, ALIGNED)  # [BLOCK]
            p_exp_avg_sq = _pointers(exp_avg_sq, start, o_block, tl.float32, ALIGNED)  # [BLOCK]
            b_gradient = (
                _load(_pointers(gradient, start, o_block, G, ALIGNED), m_block, ALIGNED) * scale
            )  # [BLOCK]
            b_parameter = _load(p_parameter, m_block, ALIGNED)  # [BLOCK]
            b_exp_avg = _lerp(_load(p_exp_avg, m_block, ALIGNED), b_gradient, weight1)  # [BLOCK]
            b_exp_avg_sq = _load(p_exp_avg_sq, m_block, ALIGNED) * beta2  # [BLOCK]
            b_exp_avg_sq = tl.fma(weight2 * b_gradient, b_gradient, b_exp_avg_sq)  # [BLOCK]
            b_root = tl.div_rn(tl.sqrt_rn(b_exp_avg_sq), tl.zeros_like(b_exp_avg_sq) + correction2)  # [BLOCK]
            b_parameter = b_parameter * decay + tl.div_rn(step_size * b_exp_avg, b_root + eps)  # [BLOCK]
            _store(p_parameter, b_parameter, m_block, tl.float32, ALIGNED)
            _store(p_exp_avg, b_exp_avg, m_block, tl.float32, ALIGNED)
            _store(p_exp_avg_sq, b_exp_avg_sq, m_block, tl.float32, ALIGNED)
            _follow(
                b_parameter, start, end, teacher, copy, teacher_copy, weight, T, C, HAS_COPIES, BLOCK, ALIGNED
            )
    else:
        for start in range(first, end, BLOCK):
            m_block = start + o_block < end  # [BLOCK]
            b_parameter = _load(
                _pointers(parameter, start, o_block, tl.float32, ALIGNED), m_block, ALIGNED
            )  # [BLOCK]
            _follow(
                b_parameter, start, end, teacher, copy, teacher_copy, weight, T, C, HAS_COPIES, BLOCK, ALIGNED
            )


@triton.jit
def _copy_bytes(source, target, first, end, BLOCK: tl.constexpr):
    o_block = tl.arange(0, BLOCK)
    p_source = source.to(tl.pointer_type(tl.uint8))
    p_target = target.to(tl.pointer_type(tl.uint8))
    for start in range(first, end, BLOCK):
        m_block = start + o_block < end  # [BLOCK]
        b_source = tl.load(p_source + start + o_block, mask=m_block)  # [BLOCK]
        tl.store(p_target + start + o_block, b_source, mask=m_block)


@triton.jit
def adamw_ema_kernel(
    p_chunks,  # int64 [rows, 3]: tensor, first value, count
    p_tensors,  # int64 [tensors, COLUMNS]: plan.py
    p_gradients,  # int64 [tensors, 2]: address, type
    p_coefficients,  # float32 [tensors, COEFFICIENTS]
    GRADIENT: tl.constexpr,
    TEACHER: tl.constexpr,
    COPIES: tl.constexpr,
    BYTES_TYPE: tl.constexpr,
    COLUMNS: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL_BLOCK: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
):
    G: tl.constexpr = tl.float32 if GRADIENT == 1 else (tl.bfloat16 if GRADIENT == 2 else tl.float16)
    T: tl.constexpr = tl.float32 if TEACHER == 1 else (tl.bfloat16 if TEACHER == 2 else tl.float16)
    C: tl.constexpr = tl.bfloat16 if COPIES == 2 else tl.float16
    HAS_COPIES: tl.constexpr = COPIES != 0
    p_chunk = p_chunks + tl.program_id(0).to(tl.int64) * 3
    i_tensor = tl.load(p_chunk)
    first = tl.load(p_chunk + 1)
    count = tl.load(p_chunk + 2).to(tl.int32)  # at most plan.CHUNK values
    p_row = p_tensors + i_tensor * COLUMNS
    p_c = p_coefficients + i_tensor * COEFFICIENTS
    count = tl.where(tl.load(p_c + 9) != 0.0, 0, count)  # a step that is skipped
    if tl.load(p_row + 7) == BYTES_TYPE:
        _copy_bytes(tl.load(p_row), tl.load(p_row + 4), first, first + count, BLOCK_BYTES)
    else:
        gradient = tl.load(p_gradients + i_tensor * 2)
        # Whole blocks of aligned tensors need no mask, so that they move 16 bytes per access. A chunk starts at a
        # multiple of 16 values, so the tensors' own addresses decide.
        addresses = tl.load(p_row) | tl.load(p_row + 1) | tl.load(p_row + 2) | tl.load(p_row + 4)
        addresses = addresses | tl.load(p_row + 5) | tl.load(p_row + 6) | gradient
        whole = first + tl.where(addresses % 16 == 0, count // BLOCK * BLOCK, 0)
        _update_run(first, whole, p_row, gradient, p_c, G, T, C, HAS_COPIES, BLOCK, True)
        _update_run(whole, first + count, p_row, gradient, p_c, G, T, C, HAS_COPIES, TAIL_BLOCK, False)


@triton.jit
def prepare_kernel(
    p_tensors,  # int64 [tensors, COLUMNS]
    p_gradients,  # int64 [tensors, 2]
    p_hyperparameters,  # float64 [groups, HYPERPARAMETERS]: work.py
    p_coefficients,  # float32 [tensors, COEFFICIENTS], written
    p_square_sum,  # float64 [1], of all gradients; read if NORM
    p_norm,  # float32 [1], written if NORM
    p_skipped,  # int64 [1], counts if SKIP
    max_norm,
    count,  # tensors
    NORM: tl.constexpr,
    SKIP: tl.constexpr,
    NORM_EPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HYPERPARAMETERS: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count the steps and form, in float64, what torch.optim.AdamW forms in Python."""
    o_tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_tensor = o_tensor < count  # [BLOCK]
    p_row = p_tensors + o_tensor * COLUMNS
    p_c = p_coefficients + o_tensor * COEFFICIENTS
    scale = 1.0
    skip = 0.0
    if NORM:
        norm = tl.sqrt(tl.load(p_square_sum)).to(tl.float32)
        if SKIP:
            skip = (1 - (norm < float("inf")).to(tl.int32)).to(tl.float32)  # NaN is not below it
        coefficient = max_norm / (norm + NORM_EPS)
        scale = tl.where(coefficient > 1.0, 1.0, coefficient)  # NaN stays
        scale = tl.where(max_norm == float("inf"), 1.0, scale)
        if tl.program_id(0) == 0:
            tl.store(p_norm, norm)
            if SKIP:
                tl.store(p_skipped, tl.load(p_skipped) + 1 - (norm < float("inf")).to(tl.int64))
    # By its type: an empty gradient has no address.
    m_step = m_tensor & (tl.load(p_gradients + o_tensor * 2 + 1, mask=m_tensor, other=0) != 0)  # [BLOCK]
    if SKIP:
        m_step = m_step & (tl.zeros([BLOCK], tl.float32) + skip < 0.5)
    p_step = tl.load(p_row + 3, mask=m_step, other=0).to(tl.pointer_type(tl.float32))  # [BLOCK]
    b_step = tl.load(p_step, mask=m_step, other=0.0) + 1.0  # [BLOCK]
    tl.store(p_step, b_step, mask=m_step)
    p_h = p_hyperparameters + tl.load(p_row + 10, mask=m_tensor, other=0) * HYPERPARAMETERS  # [BLOCK]
    b_lr = tl.load(p_h, mask=m_tensor, other=0.0)  # [BLOCK]
    b_beta1 = tl.load(p_h + 1, mask=m_tensor, other=0.5)  # [BLOCK]
    b_beta2 = tl.load(p_h + 2, mask=m_tensor, other=0.5)  # [BLOCK]
    b_eps = tl.load(p_h + 3, mask=m_tensor, other=0.0)  # [BLOCK]
    b_weight_decay = tl.load(p_h + 4, mask=m_tensor, other=0.0)  # [BLOCK]
    b_momentum = tl.load(p_h + 5, mask=m_tensor, other=0.0)  # [BLOCK]
    b_steps = b_step.to(tl.float64)  # [BLOCK]
    b_correction1 = 1.0 - tl.exp(b_steps * tl.log(b_beta1))  # [BLOCK]
    b_correction2 = 1.0 - tl.exp(b_steps * tl.log(b_beta2))  # [BLOCK]
    tl.store(p_c, (1.0 - b_lr * b_weight_decay).to(tl.float32), mask=m_tensor)
    tl.store(p_c + 1, (1.0 - b_beta1).to(tl.float32), mask=m_tensor)
    tl.store(p_c + 2, b_beta2.to(tl.float32), mask=m_tensor)
    tl.store(p_c + 3, (1.0 - b_beta2).to(tl.float32), mask=m_tensor)
    tl.store(p_c + 4, tl.sqrt(b_correction2).to(tl.float32), mask=m_tensor)
    tl.store(p_c + 5, b_eps.to(tl.float32), mask=m_tensor)
    tl.store(p_c + 6, (-(b_lr / b_correction1)).to(tl.float32), mask=m_tensor)
    tl.store(p_c + 7, (1.0 - b_momentum).to(tl.float32), mask=m_tensor)
    tl.store(p_c + 8, tl.zeros([BLOCK], tl.float32) + scale, mask=m_tensor)
    tl.store(p_c + 9, tl.zeros([BLOCK], tl.float32) + skip, mask=m_tensor)


@triton.jit
def square_sum_kernel(
    p_chunks,  # int64 [rows, 3]
    p_gradients,  # int64 [tensors, 2]
    p_sums,  # float32 [rows], written
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    G: tl.constexpr = tl.float32 if GRADIENT == 1 else (tl.bfloat16 if GRADIENT == 2 else tl.float16)
    i_row = tl.program_id(0).to(tl.int64)
    i_tensor = tl.load(p_chunks + i_row * 3)
    first = tl.load(p_chunks + i_row * 3 + 1)
    count = tl.load(p_chunks + i_row * 3 + 2).to(tl.int32)
    gradient = tl.load(p_gradients + i_tensor * 2)
    end = first + tl.where(gradient == 0, 0, count)
    whole = first + tl.where((gradient % 16 == 0) & (gradient != 0), count // BLOCK * BLOCK, 0)
    o_block = tl.arange(0, BLOCK)
    b_sum = tl.zeros([BLOCK], tl.float32)  # [BLOCK]
    for start in range(first, whole, BLOCK):
        b_gradient = _load(_pointers(gradient, start, o_block, G, True), True, True)  # [BLOCK]
        b_sum += b_gradient * b_gradient
    for start in range(whole, end, BLOCK):
        m_block = start + o_block < end  # [BLOCK]
        b_gradient = _load(_pointers(gradient, start, o_block, G, False), m_block, False)  # [BLOCK]
        b_sum += b_gradient * b_gradient
    tl.store(p_sums + i_row, tl.sum(b_sum, axis=0))


@functools.cache
def _update_configuration(gradient: int, teacher: int, copies: int) -> KernelConfiguration:
    return KernelConfiguration(
        name=f"adamw_ema/gradient={_TYPE_NAMES[gradient]}/teacher={_TYPE_NAMES[teacher]}/copies={_TYPE_NAMES[copies]}",
        kernel=adamw_ema_kernel,
        signature={"p_chunks": "*i64", "p_tensors": "*i64", "p_gradients": "*i64", "p_coefficients": "*fp32"},
        constexprs={
            "GRADIENT": gradient,
            "TEACHER": teacher,
            "COPIES": copies,
            "BYTES_TYPE": BYTES,
            "COLUMNS": COLUMNS,
            "COEFFICIENTS": _COEFFICIENTS,
            "BLOCK": _BLOCK,
            "TAIL_BLOCK": _TAIL_BLOCK,
            "BLOCK_BYTES": _BLOCK_BYTES,
        },
        divisible_by_16=("p_chunks", "p_tensors", "p_gradients", "p_coefficients"),
        num_warps=_NUM_WARPS,
        sampled=(gradient + teacher + copies) % 3 == 0,  # every pair of two types once
        enable_fp_fusion=False,  # every product and sum is rounded by itself, as in torch.optim.AdamW
    )


@functools.cache
def _prepare_configuration(norm: bool, skip: bool) -> KernelConfiguration:
    return KernelConfiguration(
        name="prepare" + ("/norm" if norm else "") + ("/skip" if skip else ""),
        kernel=prepare_kernel,
        signature={
            "p_tensors": "*i64",
            "p_gradients": "*i64",
            "p_hyperparameters": "*fp64",
            "p_coefficients": "*fp32",
            "p_square_sum": "*fp64",
            "p_norm": "*fp32",
            "p_skipped": "*i64",
            "max_norm": "fp32",
            "count": "i32",
        },
        constexprs={
            "NORM": norm,
            "SKIP": skip,
            "NORM_EPS": NORM_EPS,
            "COLUMNS": COLUMNS,
            "HYPERPARAMETERS": MOMENTUM + 1,
            "COEFFICIENTS": _COEFFICIENTS,
            "BLOCK": _TENSORS_PER_PROGRAM,
        },
        num_warps=_NUM_WARPS,
        enable_fp_fusion=False,
        expected_load_bits=0,  # a few values per tensor, from as many places
        expected_store_bits=0,
    )


@functools.cache
def _square_sum_configuration(gradient: int) -> KernelConfiguration:
    return KernelConfiguration(
        name=f"square_sum/gradient={_TYPE_NAMES[gradient]}",
        kernel=square_sum_kernel,
        signature={"p_chunks": "*i64", "p_gradients": "*i64", "p_sums": "*fp32"},
        constexprs={"GRADIENT": gradient, "BLOCK": _NORM_BLOCK},
        divisible_by_16=("p_chunks", "p_gradients", "p_sums"),
        num_warps=_NUM_WARPS,
        expected_store_bits=0,  # one sum per program
    )


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    types = range(1, 1 + len(FLOAT_TYPES))
    for gradient in types:
        yield _square_sum_configuration(gradient)
        for teacher in types:
            for copies in (ABSENT, 2, 3):
                yield _update_configuration(gradient, teacher, copies)
    for norm, skip in ((False, False), (True, False), (True, True)):
        yield _prepare_configuration(norm, skip)


def _types(work: Work) -> tuple[set[int], set[int], set[int]]:
    """Types that occur of gradients, teachers and copies."""
    copies = {kind for types in work.plan.types for kind in types[1:]}
    teachers = {types[0] for types in work.plan.types}
    none = {ABSENT, BYTES}
    return set(work.gradients.types) - none, teachers - none, copies - none


def why_not(work: Work) -> list[str]:
    if work.refusals:
        return work.refusals
    refusals = []
    for name, types in zip(("gradients", "teachers", "copies"), _types(work), strict=True):
        if len(types) > 1:
            names = " and ".join(_TYPE_NAMES[kind] for kind in sorted(types))
            refusals.append(f"{name} are {names}; the kernel takes one dtype")
    if 1 in _types(work)[2]:
        refusals.append("copies are float32; the kernel writes bfloat16 or float16")
    return refusals


def step_(work: Work) -> None:
    plan, gradients = work.plan, work.gradients.table
    rows, count = plan.chunks.shape[0], plan.tensors.shape[0]
    if rows == 0:
        return
    gradient, teacher, copies = (max(types, default=ABSENT) for types in _types(work))
    coefficients = torch.empty(count, _COEFFICIENTS, device=plan.device)
    measured = work.max_norm is not None and work.report is not None
    norm, skipped = (
        (work.report.norm, work.report.skipped) if work.report is not None else (coefficients, plan.chunks)
    )
    square_sum = work.hyperparameters  # passed unread where there is no norm, as Triton wants a tensor
    if measured:
        sums = torch.empty(rows, device=plan.device)
        launch(_square_sum_configuration(gradient or 1), (rows,), plan.chunks, gradients, sums)
        square_sum = sums.sum(dtype=torch.float64).reshape(1)
        if work.reduce is not None:
            work.reduce(square_sum)
    launch(
        _prepare_configuration(measured, measured and work.skip),
        (triton.cdiv(count, _TENSORS_PER_PROGRAM),),
        plan.tensors,
        gradients,
        work.hyperparameters,
        coefficients,
        square_sum,
        norm,
        skipped,
        math.inf if work.max_norm is None else work.max_norm,
        count,
    )
    launch(
        _update_configuration(gradient or 1, teacher or 1, copies),
        (rows,),
        plan.chunks,
        plan.tensors,
        gradients,
        coefficients,
    )
