"""GELU on the GPU, and its backward with the sum over rows, which is the gradient of the bias before it."""

# mypy: allow-untyped-defs
import functools
import itertools
from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.configuration import KernelConfiguration
from ..runtime.launch import launch

_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_BLOCK = 2048  # 16 values per lane
_COLUMNS, _ROWS, _NUM_WARPS = 128, 8, 4  # 8 values per lane: twice as many took most registers
_MOST_PARTS = 64  # of the rows, each of which leaves a row of sums


@triton.jit
def _below(b_x):
    """Phi(x), the normal distribution's share below x."""
    return 0.5 + 0.5 * tl.math.erf(b_x * 0.7071067811865476)


@triton.jit
def gelu_kernel(p_before, p_after, size, BLOCK: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < size
    b_x = tl.load(p_before + o, mask=m, other=0.0).to(tl.float32)  # [BLOCK]
    tl.store(p_after + o, (b_x * _below(b_x)).to(p_after.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["rows", "rows_per_part"])
def gelu_backward_kernel(
    p_grad,  # [rows, D], contiguous; becomes the gradient of before
    p_before,  # [rows, D], contiguous; becomes gelu(before) if RECOMPUTE
    p_partial,  # float32 [parts, D]
    rows,
    rows_per_part,
    features,
    RECOMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_part = tl.program_id(1).to(tl.int64)
    o_d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    m_d = o_d < features
    first = i_part * rows_per_part
    last = tl.minimum(first + rows_per_part, rows)
    b_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for row in range(first, last, ROWS):
        o_row = row + tl.arange(0, ROWS).to(tl.int64)  # [ROWS]
        m = (o_row < last)[:, None] & m_d[None, :]  # [ROWS, COLUMNS]
        o = o_row[:, None] * features + o_d[None, :]  # [ROWS, COLUMNS]
        b_x = tl.load(p_before + o, mask=m, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
        b_grad = tl.load(p_grad + o, mask=m, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
        b_below = _below(b_x)  # [ROWS, COLUMNS]
        b_density = 0.3989422804014327 * tl.exp(-0.5 * b_x * b_x)  # [ROWS, COLUMNS]
        b_grad *= b_below + b_x * b_density
        b_sum += b_grad
        tl.store(p_grad + o, b_grad.to(p_grad.dtype.element_ty), mask=m)
        if RECOMPUTE:
            tl.store(p_before + o, (b_x * b_below).to(p_before.dtype.element_ty), mask=m)
    tl.store(p_partial + i_part * features + o_d, tl.sum(b_sum, axis=0), mask=m_d)


@functools.cache
def _forward_configuration(dtype: torch.dtype, aligned: bool) -> KernelConfiguration:
    widest = 128 if aligned else 0
    return KernelConfiguration(
        name=f"gelu/{_TYPES[dtype]}" + ("" if aligned else "/unaligned"),
        kernel=gelu_kernel,
        signature={**dict.fromkeys(("p_before", "p_after"), f"*{_TYPES[dtype]}"), "size": "i32"},
        constexprs={"BLOCK": _BLOCK},
        divisible_by_16=("p_before", "p_after", "size") if aligned else (),
        num_warps=_NUM_WARPS,
        sampled=aligned or dtype == torch.bfloat16,
        expected_load_bits=widest,
        expected_store_bits=widest,
    )


@functools.cache
def _backward_configuration(dtype: torch.dtype, recompute: bool, aligned: bool) -> KernelConfiguration:
    pointers = {**dict.fromkeys(("p_grad", "p_before"), f"*{_TYPES[dtype]}"), "p_partial": "*fp32"}
    widest = 128 if aligned else 0
    return KernelConfiguration(
        name=f"gelu_backward{'_recompute' if recompute else ''}/{_TYPES[dtype]}"
        + ("" if aligned else "/unaligned"),
        kernel=gelu_backward_kernel,
        signature={**pointers, **dict.fromkeys(("rows", "rows_per_part", "features"), "i32")},
        constexprs={"RECOMPUTE": recompute, "ROWS": _ROWS, "COLUMNS": _COLUMNS},
        divisible_by_16=(*pointers, "features") if aligned else (),
        num_warps=_NUM_WARPS,
        sampled=aligned or dtype == torch.bfloat16,
        expected_load_bits=widest,
        expected_store_bits=widest,
    )


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    for dtype, aligned in itertools.product(_TYPES, (True, False)):
        yield _forward_configuration(dtype, aligned)
        for recompute in (False, True):
            yield _backward_configuration(dtype, recompute, aligned)


def why_not(dtype: torch.dtype, features: int) -> list[str]:
    return [] if dtype in _TYPES else [f"x is {dtype}; the kernel takes float32, bfloat16 and float16"]


def gelu(before: Tensor, out: Tensor | None = None) -> Tensor:
    after = torch.empty(before.shape, dtype=before.dtype, device=before.device) if out is None else out
    if before.numel():
        aligned = not (before.data_ptr() % 16 or after.data_ptr() % 16 or before.numel() % 16)
        configuration = _forward_configuration(before.dtype, aligned)
        launch(configuration, (triton.cdiv(before.numel(), _BLOCK),), before, after, before.numel())
    return after


def gelu_backward_(grad: Tensor, before: Tensor, recompute: bool) -> Tensor:
    rows, features = grad.shape
    rows_per_part = max(_ROWS, triton.cdiv(rows, _MOST_PARTS * _ROWS) * _ROWS)
    parts = triton.cdiv(rows, rows_per_part)
    partial = torch.empty((parts, features), dtype=torch.float32, device=grad.device)
    if grad.numel():
        aligned = not (grad.data_ptr() % 16 or before.data_ptr() % 16 or features % 16)
        launch(
            _backward_configuration(grad.dtype, recompute, aligned),
            (triton.cdiv(features, _COLUMNS), parts),
            grad,
            before,
            partial,
            rows,
            rows_per_part,
            features,
        )
    return partial.sum(0)  # by PyTorch, in an order that the shape alone decides
