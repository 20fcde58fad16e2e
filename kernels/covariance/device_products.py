"""Matrix products of the covariance losses on the GPU: operands centred and scaled as they are loaded.

Gram form: XX' [N, N] of both views; tiled form: X'X or X'Y [D, D], which is no larger than a view as D <= N. Either
is called the matrix here; the other product of the loss is that of the matrix and the views.
"""

# mypy: allow-untyped-defs
import functools
from collections.abc import Iterable

import torch
import triton
import triton.language as tl

from ..runtime.configuration import KernelConfiguration

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
EXACT_BLOCK = 32  # of products in float64
REDUCE_BLOCK = 32
SPLITS_MOST = 32


@triton.jit
def _centred(p_tile, m, b_mean, b_scale, SCALED: tl.constexpr):
    """What is loaded and masked, minus the mean, times the scale; both broadcast over the tile."""
    b_tile = tl.load(p_tile, mask=m, other=0.0).to(b_mean.dtype)
    b_tile = b_tile - b_mean
    if SCALED:
        b_tile = b_tile * b_scale
    return tl.where(m, b_tile, 0.0)


@triton.jit(do_not_specialize=["rows", "steps", "splits"])
def matrix_kernel(
    p_z,  # [N, D] of the first view
    p_columns,  # float32 [COLUMNS, D]
    p_flag,  # int32 [views], read if EXACT
    p_partial,  # [matrices, splits, side, side], blocks on and above the diagonal; all if PAIR
    view_offset,
    rows,
    features,
    stride,
    steps,  # of BLOCK_K along the sum, for each of the splits
    splits,
    TILED: tl.constexpr,  # X'X, else XX'
    PAIR: tl.constexpr,  # X'Y
    SCALED: tl.constexpr,
    EXACT: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i_tile, i_split, i_view = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    side, depth = rows, features
    if TILED:
        side, depth = features, rows
    blocks = tl.cdiv(side, BLOCK)
    i_i, i_j = i_tile // blocks, i_tile % blocks
    if not PAIR:
        if i_j < i_i:
            return
    if EXACT:
        if tl.load(p_flag + i_view) == 0:
            return
    ACCUMULATOR: tl.constexpr = tl.float64 if EXACT else tl.float32
    o_i = (i_i * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    o_j = (i_j * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    m_i, m_j = o_i < side, o_j < side
    p_first = p_z + i_view * view_offset
    p_mean = p_columns + 2 * i_view * features
    p_scale = p_columns + (5 + i_view) * features
    p_second, p_mean_j, p_scale_j = p_first, p_mean, p_scale
    if PAIR:
        p_second, p_mean_j, p_scale_j = p_z + view_offset, p_columns + 2 * features, p_columns + 6 * features
    b_acc = tl.zeros([BLOCK, BLOCK], ACCUMULATOR)
    start = i_split * steps * BLOCK_K
    stop = tl.minimum(start + steps * BLOCK_K, depth)
    if TILED:
        p_i = p_first + o_i[None, :]  # [1, BLOCK]
        p_j = p_second + o_j[None, :]  # [1, BLOCK]
        b_mean = tl.load(p_mean + o_i, mask=m_i, other=0.0).to(ACCUMULATOR)[None, :]  # [1, BLOCK]
        b_mean_j = tl.load(p_mean_j + o_j, mask=m_j, other=0.0).to(ACCUMULATOR)[None, :]  # [1, BLOCK]
        b_scale, b_scale_j = b_mean, b_mean_j
        if SCALED:
            b_scale = tl.load(p_scale + o_i, mask=m_i, other=0.0)[None, :]  # [1, BLOCK]
            b_scale_j = tl.load(p_scale_j + o_j, mask=m_j, other=0.0)[None, :]  # [1, BLOCK]
        for k in range(start, stop, BLOCK_K):
            o_k = (k + tl.arange(0, BLOCK_K)).to(tl.int64)
            m_k = (o_k < rows)[:, None]  # [BLOCK_K, 1]
            b_i = _centred(p_i + o_k[:, None] * stride, m_k & m_i[None, :], b_mean, b_scale, SCALED)
            b_j = _centred(p_j + o_k[:, None] * stride, m_k & m_j[None, :], b_mean_j, b_scale_j, SCALED)
            b_acc = tl.dot(
                tl.trans(b_i.to(OPERAND)), b_j.to(OPERAND), b_acc, input_precision=PRECISION, out_dtype=ACCUMULATOR
            )  # [BLOCK, BLOCK]
    else:
        p_i = p_first + o_i[:, None] * stride  # [BLOCK, 1]
        p_j = p_second + o_j[:, None] * stride  # [BLOCK, 1]
        for k in range(start, stop, BLOCK_K):
            o_k = k + tl.arange(0, BLOCK_K)
            m_k = o_k < features  # as divisible as features are, so that 16 bytes are loaded at a time
            b_mean = tl.load(p_mean + o_k, mask=m_k, other=0.0).to(ACCUMULATOR)[None, :]  # [1, BLOCK_K]
            b_scale = b_mean
            if SCALED:
                b_scale = tl.load(p_scale + o_k, mask=m_k, other=0.0)[None, :]  # [1, BLOCK_K]
            b_i = _centred(p_i + o_k[None, :], m_i[:, None] & m_k[None, :], b_mean, b_scale, SCALED)
            b_j = _centred(p_j + o_k[None, :], m_j[:, None] & m_k[None, :], b_mean, b_scale, SCALED)
            b_acc = tl.dot(
                b_i.to(OPERAND), tl.trans(b_j.to(OPERAND)), b_acc, input_precision=PRECISION, out_dtype=ACCUMULATOR
            )  # [BLOCK, BLOCK]
    p_out = p_partial + (i_view * splits + i_split).to(tl.int64) * side * side
    tl.store(p_out + o_i[:, None] * side + o_j[None, :], b_acc, mask=m_i[:, None] & m_j[None, :])


@triton.jit(do_not_specialize=["side", "splits"])
def join_kernel(
    p_partial,  # [matrices, splits, side, side]
    p_matrix,  # [matrices, side, side], whole; may be p_partial if there is one split
    p_diagonal,  # [matrices, side], which is zero in p_matrix; written if not SKIP_DIAGONAL
    p_squares,  # [matrices, tiles], sums of squares; [tiles], sums of products of two matrices, if CROSS
    p_flag,  # int32 [views], read if EXACT
    side,
    splits,
    SYMMETRIC: tl.constexpr,
    CROSS: tl.constexpr,
    SKIP_DIAGONAL: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_tile, i_view = tl.program_id(0), tl.program_id(1)
    blocks = tl.cdiv(side, BLOCK)
    i_i, i_j = i_tile // blocks, i_tile % blocks
    ACCUMULATOR: tl.constexpr = tl.float64 if EXACT else tl.float32
    p_square = p_squares + i_view * (blocks * blocks) + i_tile
    if EXACT:
        if tl.load(p_flag + i_view) == 0:
            return
    if SYMMETRIC:
        if i_j < i_i:
            tl.store(p_square, 0.0)
            return
    o_i = (i_i * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    o_j = (i_j * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    m = (o_i < side)[:, None] & (o_j < side)[None, :]  # [BLOCK, BLOCK]
    o_tile = o_i[:, None] * side + o_j[None, :]
    o_turned = o_j[None, :] * side + o_i[:, None]
    size = side.to(tl.int64) * side
    b_first = tl.zeros([BLOCK, BLOCK], ACCUMULATOR)
    for split in range(splits):
        b_first += tl.load(p_partial + (i_view * splits + split) * size + o_tile, mask=m, other=0.0)
    b_second = b_first
    on_diagonal = o_i[:, None] == o_j[None, :]  # [BLOCK, BLOCK]
    if SKIP_DIAGONAL:
        b_first = tl.where(on_diagonal, 0.0, b_first)
        b_second = b_first
    p_own = p_matrix + i_view * size
    if CROSS:
        b_second = tl.zeros([BLOCK, BLOCK], ACCUMULATOR)
        for split in range(splits):
            b_second += tl.load(p_partial + (splits + split) * size + o_tile, mask=m, other=0.0)
        b_beside = tl.where(on_diagonal, 0.0, b_second)  # [BLOCK, BLOCK]
        tl.store(p_own + size + o_tile, b_beside, mask=m)
        if i_j > i_i:
            tl.store(p_own + size + o_turned, b_beside, mask=m)
    b_beside = tl.where(on_diagonal, 0.0, b_first)  # [BLOCK, BLOCK]
    tl.store(p_own + o_tile, b_beside, mask=m)
    total = tl.sum(tl.sum(tl.where(m, b_first * b_second, 0.0), axis=1), axis=0)
    if SYMMETRIC:
        if i_j > i_i:
            tl.store(p_own + o_turned, b_beside, mask=m)
            total = total * 2.0
    if not SKIP_DIAGONAL:
        if i_j == i_i:
            p_row = p_diagonal + i_view * side + o_i
            tl.store(p_row, tl.sum(tl.where(on_diagonal, b_first, 0.0), axis=1), mask=o_i < side)
            if CROSS:
                b_row = tl.sum(tl.where(on_diagonal, b_second, 0.0), axis=1)  # [BLOCK]
                tl.store(p_row + side, b_row, mask=o_i < side)
    tl.store(p_square, total)


@triton.jit(do_not_specialize=["rows"])
def exact_diagonal_kernel(
    p_z,
    p_columns,
    p_flag,
    p_diagonal,  # float64 [views, D], sums over rows of squares
    p_squares,  # float64 [views, blocks], sums of the squares of those
    view_offset,
    rows,
    features,
    stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_d, i_view = tl.program_id(0), tl.program_id(1)
    if tl.load(p_flag + i_view) == 0:
        return
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < features
    b_mean = tl.load(p_columns + 2 * i_view * features + o_d, mask=m_d, other=0.0).to(tl.float64)[None, :]
    b_sum = tl.zeros([BLOCK_D], tl.float64)
    for row in range(0, rows, BLOCK_ROWS):
        o_n = row + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        m = (o_n < rows)[:, None] & m_d[None, :]  # [BLOCK_ROWS, BLOCK_D]
        p_tile = p_z + i_view * view_offset + o_n[:, None] * stride + o_d[None, :]
        b_tile = _centred(p_tile, m, b_mean, b_mean, False)  # [BLOCK_ROWS, BLOCK_D]
        b_sum += tl.sum(b_tile * b_tile, axis=0)
    tl.store(p_diagonal + i_view * features + o_d, b_sum, mask=m_d)
    tl.store(p_squares + i_view * tl.num_programs(0) + i_d, tl.sum(tl.where(m_d, b_sum * b_sum, 0.0), axis=0))


@triton.jit(do_not_specialize=["rows"])
def product_kernel(
    p_matrix,  # [matrices, side, side], float64 if EXACT
    p_rows,  # [matrices, N], the diagonal of a Gram matrix, which outweighs the rest and is therefore apart
    p_z,  # [N, D] of the first view
    p_columns,  # float32 [COLUMNS, D]
    p_diagonal,  # float64 [views, D], read if EXACT
    p_flag,  # int32 [views], read if GUARDED or EXACT
    p_out,  # [N, D] of the first view, contiguous: the gradient, or the product alone if BARLOW
    p_dots,  # float32 [views, row blocks, D], sums over rows of product * view, written if BARLOW
    view_offset,
    out_offset,
    rows,
    features,
    stride,
    eps,
    hinge,  # variance weight / (D (N - 1))
    distance,  # 2 invariance weight / (N D)
    of_product,  # factor of the product in the gradient
    TILED: tl.constexpr,
    BARLOW: tl.constexpr,
    PAIR: tl.constexpr,
    GUARDED: tl.constexpr,
    EXACT: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i_d, i_n, i_view = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if GUARDED or EXACT:
        cancels = tl.load(p_flag + i_view) != 0
        if cancels != EXACT:
            return
    ACCUMULATOR: tl.constexpr = tl.float64 if EXACT else tl.float32
    o_n = (i_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_n, m_d = o_n < rows, o_d < features
    m = m_n[:, None] & m_d[None, :]  # [BLOCK_N, BLOCK_D]
    p_own = p_z + i_view * view_offset
    toward = tl.where(i_view == 0, view_offset, -view_offset)  # from this view to the other
    b_mean = tl.load(p_columns + 2 * i_view * features + o_d, mask=m_d, other=0.0).to(ACCUMULATOR)[None, :]
    b_scale = b_mean
    if BARLOW:
        b_scale = tl.load(p_columns + (5 + i_view) * features + o_d, mask=m_d, other=0.0)[None, :]
    b_acc = tl.zeros([BLOCK_N, BLOCK_D], ACCUMULATOR)
    if TILED:
        # X times the matrix; for Barlow Twins the other view times it, turned for the first view
        p_left = p_own
        p_mean_left, p_scale_left = p_columns + 2 * i_view * features, p_columns + (5 + i_view) * features
        p_right = p_matrix + i_view * tl.cast(features, tl.int64) * features
        stride_k, stride_d = features, 1
        if BARLOW:
            p_left = p_own + toward
            p_mean_left = p_columns + 2 * (1 - i_view) * features
            p_scale_left = p_columns + (6 - i_view) * features
            p_right = p_matrix
            stride_k, stride_d = tl.where(i_view == 0, 1, features), tl.where(i_view == 0, features, 1)
        for k in range(0, features, BLOCK_K):
            o_k = k + tl.arange(0, BLOCK_K)
            m_k = o_k < features
            b_mean_k = tl.load(p_mean_left + o_k, mask=m_k, other=0.0)[None, :]  # [1, BLOCK_K]
            b_scale_k = b_mean_k
            if BARLOW:
                b_scale_k = tl.load(p_scale_left + o_k, mask=m_k, other=0.0)[None, :]  # [1, BLOCK_K]
            p_tile = p_left + o_n[:, None] * stride + o_k[None, :]
            b_left = _centred(p_tile, m_n[:, None] & m_k[None, :], b_mean_k, b_scale_k, BARLOW)
            p_tile = p_right + o_k.to(tl.int64)[:, None] * stride_k + o_d.to(tl.int64)[None, :] * stride_d
            b_right = tl.load(p_tile, mask=m_k[:, None] & m_d[None, :], other=0.0)  # [BLOCK_K, BLOCK_D]
            b_acc = tl.dot(b_left.to(OPERAND), b_right.to(OPERAND), b_acc, input_precision=PRECISION)
    else:
        # the Gram matrix times X; for Barlow Twins the other view's matrix
        i_matrix = 1 - i_view if BARLOW else i_view
        p_left = p_matrix + i_matrix * rows.to(tl.int64) * rows
        for k in range(0, rows, BLOCK_K):
            o_k = (k + tl.arange(0, BLOCK_K)).to(tl.int64)
            m_k = o_k < rows
            p_tile = p_left + o_n[:, None] * rows + o_k[None, :]
            b_left = tl.load(p_tile, mask=m_n[:, None] & m_k[None, :], other=0.0)  # [BLOCK_N, BLOCK_K]
            p_tile = p_own + o_k[:, None] * stride + o_d[None, :]
            b_right = _centred(p_tile, m_k[:, None] & m_d[None, :], b_mean, b_scale, BARLOW)
            b_acc = tl.dot(
                b_left.to(OPERAND), b_right.to(OPERAND), b_acc, input_precision=PRECISION, out_dtype=ACCUMULATOR
            )  # [BLOCK_N, BLOCK_D]
    p_tile = p_own + o_n[:, None] * stride + o_d[None, :]
    b_own = tl.load(p_tile, mask=m, other=0.0)  # [BLOCK_N, BLOCK_D]
    b_centred = tl.where(m, b_own.to(ACCUMULATOR) - b_mean, 0.0)  # [BLOCK_N, BLOCK_D]
    if not TILED:
        i_matrix = 1 - i_view if BARLOW else i_view
        b_row = tl.load(p_rows + i_matrix * rows + o_n, mask=m_n, other=0.0)[:, None]  # [BLOCK_N, 1]
        if BARLOW:
            b_acc += b_row * (b_centred * b_scale)
        else:
            b_acc += b_row * b_centred
    p_store = p_out + i_view * out_offset + o_n[:, None] * features + o_d[None, :]
    if BARLOW:
        b_dots = tl.sum(b_acc * b_centred * b_scale, axis=0)  # [BLOCK_D]
        p_dot = p_dots + (i_view * tl.num_programs(1) + i_n) * features + o_d
        tl.store(p_dot, b_dots, mask=m_d)
        tl.store(p_store, b_acc, mask=m)
    else:
        b_square = tl.load(p_columns + (2 * i_view + 1) * features + o_d, mask=m_d, other=0.0)  # [BLOCK_D]
        b_smooth = tl.sqrt(b_square / (rows.to(tl.float32) - 1.0) + eps)  # [BLOCK_D]
        b_slope = tl.where((b_smooth < 1.0) & (hinge != 0.0), -hinge / b_smooth, 0.0)  # [BLOCK_D]
        if EXACT:
            b_square = tl.load(p_diagonal + i_view * features + o_d, mask=m_d, other=0.0)  # [BLOCK_D]
        if not TILED:
            b_acc -= b_square[None, :] * b_centred
        b_value = of_product * b_acc + b_slope[None, :] * b_centred  # [BLOCK_N, BLOCK_D]
        if PAIR:
            b_other = tl.load(p_tile + toward, mask=m, other=0.0)  # [BLOCK_N, BLOCK_D]
            b_value += distance * (b_own.to(ACCUMULATOR) - b_other.to(ACCUMULATOR))
        tl.store(p_store, b_value.to(p_out.dtype.element_ty), mask=m)


# ---- configurations -------------------------------------------------------------------------------------------

_ALIGNED = ("view_offset", "features", "stride")
_OUT = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp32"}  # type of gradients; see api.py
# Operand and precision of a product. In the second product one operand is a sum of products, beyond float16's range:
# there float16 goes as TF32, which holds its 11 bits.
_FIRST = {"fp32": (tl.float32, "tf32x3"), "bf16": (tl.bfloat16, "tf32"), "fp16": (tl.float16, "tf32")}
_SECOND = {"fp32": (tl.float32, "tf32x3"), "bf16": (tl.bfloat16, "tf32"), "fp16": (tl.float32, "tf32")}
_EXACT = (tl.float64, "ieee")


def block(exact: bool) -> int:
    """Rows and columns of a program's tile of the matrix. 128 would halve the operands' traffic, and spills: centring
    takes its registers beside the sums."""
    return EXACT_BLOCK if exact else 64


def _warps(kind: str, tiled: bool, aligned: bool) -> int:
    """Four hold a tile of half precision; TF32's three products, turned operands and single loads take more."""
    return 4 if aligned and not tiled and kind != "fp32" else 8


def _stages(tiled: bool, aligned: bool) -> int:
    """Tiles of the operands that are under way at once."""
    return 3 if aligned and not tiled else 2


@functools.cache
def matrix(
    dtype: torch.dtype, tiled: bool, barlow: bool, exact: bool, aligned: bool
) -> KernelConfiguration:
    kind = TYPES[dtype]
    operand, precision = _EXACT if exact else _FIRST[kind]
    form = ("tiled" if tiled else "gram") + ("/barlow" if barlow else "") + ("/exact" if exact else "")
    return KernelConfiguration(
        name=f"matrix/{kind}/{form}{'' if aligned else '/unaligned'}",
        kernel=matrix_kernel,
        signature={
            "p_z": f"*{kind}",
            "p_columns": "*fp32",
            "p_flag": "*i32",
            "p_partial": "*fp64" if exact else "*fp32",
            "view_offset": "i64",
            **dict.fromkeys(("rows", "features", "stride", "steps", "splits"), "i32"),
        },
        constexprs={
            "TILED": tiled,
            "PAIR": barlow and tiled,
            "SCALED": barlow,
            "EXACT": exact,
            "OPERAND": operand,
            "PRECISION": precision,
            "BLOCK": block(exact),
            "BLOCK_K": 32,
        },
        divisible_by_16=("p_z", "p_columns", *_ALIGNED) if aligned else (),
        num_warps=4 if exact else _warps(kind, tiled, aligned),
        num_stages=1 if exact else _stages(tiled, aligned),
        expected_load_bits=128 if aligned and not exact else 0,
        expected_store_bits=0,
        expected_tensor_core=not exact,
    )


@functools.cache
def join(symmetric: bool, cross: bool, skip_diagonal: bool, exact: bool) -> KernelConfiguration:
    form = "cross" if cross else ("symmetric" if symmetric else "whole") + ("/skip" if skip_diagonal else "")
    pointer = "*fp64" if exact else "*fp32"
    return KernelConfiguration(
        name=f"join/{form}{'/exact' if exact else ''}",
        kernel=join_kernel,
        signature={
            **dict.fromkeys(("p_partial", "p_matrix", "p_diagonal", "p_squares"), pointer),
            "p_flag": "*i32",
            "side": "i32",
            "splits": "i32",
        },
        constexprs={
            "SYMMETRIC": symmetric,
            "CROSS": cross,
            "SKIP_DIAGONAL": skip_diagonal,
            "EXACT": exact,
            "BLOCK": REDUCE_BLOCK,
        },
        expected_load_bits=0,
        expected_store_bits=0,
    )


@functools.cache
def exact_diagonal(dtype: torch.dtype) -> KernelConfiguration:
    return KernelConfiguration(
        name=f"exact_diagonal/{TYPES[dtype]}",
        kernel=exact_diagonal_kernel,
        signature={
            "p_z": f"*{TYPES[dtype]}",
            "p_columns": "*fp32",
            "p_flag": "*i32",
            "p_diagonal": "*fp64",
            "p_squares": "*fp64",
            "view_offset": "i64",
            **dict.fromkeys(("rows", "features", "stride"), "i32"),
        },
        constexprs={"BLOCK_ROWS": 16, "BLOCK_D": 128},
        expected_load_bits=0,
        expected_store_bits=0,
    )


@functools.cache
def product(
    dtype: torch.dtype, tiled: bool, barlow: bool, pair: bool, guarded: bool, exact: bool, aligned: bool
) -> KernelConfiguration:
    kind = TYPES[dtype]
    operand, precision = _EXACT if exact else _SECOND[kind]
    form = ("tiled" if tiled else "gram") + ("/barlow" if barlow else "/pair" if pair else "")
    form += "/exact" if exact else "/guarded" if guarded else ""
    return KernelConfiguration(
        name=f"product/{kind}/{form}{'' if aligned else '/unaligned'}",
        kernel=product_kernel,
        signature={
            "p_matrix": "*fp64" if exact else "*fp32",
            "p_rows": "*fp64" if exact else "*fp32",
            "p_z": f"*{kind}",
            "p_columns": "*fp32",
            "p_diagonal": "*fp64",
            "p_flag": "*i32",
            "p_out": "*fp32" if barlow else f"*{_OUT[kind]}",
            "p_dots": "*fp32",
            "view_offset": "i64",
            "out_offset": "i64",
            **dict.fromkeys(("rows", "features", "stride"), "i32"),
            **dict.fromkeys(("eps", "hinge", "distance", "of_product"), "fp32"),
        },
        constexprs={
            "TILED": tiled,
            "BARLOW": barlow,
            "PAIR": pair,
            "GUARDED": guarded,
            "EXACT": exact,
            "OPERAND": operand,
            "PRECISION": precision,
            "BLOCK_N": EXACT_BLOCK if exact else 64,
            "BLOCK_D": EXACT_BLOCK if exact else 64,
            "BLOCK_K": 32,
        },
        divisible_by_16=("p_matrix", "p_z", "p_columns", "p_out", "p_dots", "out_offset", *_ALIGNED)
        if aligned
        else (),
        num_warps=4 if exact else _warps(kind, tiled, aligned),
        num_stages=1 if exact else _stages(tiled, aligned),
        expected_load_bits=128 if aligned and not exact else 0,
        expected_store_bits=0,
        expected_tensor_core=not exact,
    )


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    for dtype, kind in TYPES.items():
        guarded = kind == "fp32"
        for aligned in (True, False):
            for tiled in (False, True):
                for barlow in (False, True):
                    yield matrix(dtype, tiled, barlow, False, aligned)
                yield product(dtype, tiled, True, True, False, False, aligned)
                for pair in (False, True):
                    yield product(dtype, tiled, False, pair, guarded and not tiled, False, aligned)
            if guarded:
                yield matrix(dtype, False, False, True, aligned)
                for pair in (False, True):
                    yield product(dtype, False, False, pair, False, True, aligned)
        if guarded:
            yield exact_diagonal(dtype)
    yield join(True, False, False, False)
    yield join(True, False, True, False)
    yield join(False, False, True, False)
    yield join(True, True, False, False)
    yield join(True, False, False, True)
