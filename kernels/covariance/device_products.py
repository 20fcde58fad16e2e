"""Matrix products of the covariance losses on the GPU: operands centred and scaled as they are loaded.

Gram form: XX' [N, N] of both views; tiled form: X'X or X'Y [D, D], which is no larger than a view as D <= N. Either
is called the matrix here; the other product of the loss is that of the matrix and the views.
"""

# mypy: allow-untyped-defs
# ruff: noqa: N803, N806, SIM102 (constexpr arguments are upper case in Triton, and are tested before anything else)
import triton
import triton.language as tl


@triton.jit
def _centred(p_tile, m, b_mean, b_low, b_scale, SCALED: tl.constexpr):
    """What is loaded and masked, minus the mean in two parts, times the scale; all broadcast over the tile."""
    b_tile = tl.load(p_tile, mask=m, other=0.0).to(b_mean.dtype)
    b_tile = b_tile - b_mean - b_low
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
    LOW: tl.constexpr,  # row of p_columns with what the rounding of the means left
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
    p_low = p_columns + (LOW + i_view) * features
    p_second, p_mean_j, p_low_j, p_scale_j = p_first, p_mean, p_low, p_scale
    if PAIR:
        p_second, p_mean_j, p_scale_j = p_z + view_offset, p_columns + 2 * features, p_columns + 6 * features
        p_low_j = p_columns + (LOW + 1) * features
    b_acc = tl.zeros([BLOCK, BLOCK], ACCUMULATOR)
    start = i_split * steps * BLOCK_K
    stop = tl.minimum(start + steps * BLOCK_K, depth)
    if TILED:
        p_i = p_first + o_i[None, :]  # [1, BLOCK]
        p_j = p_second + o_j[None, :]  # [1, BLOCK]
        b_mean = tl.load(p_mean + o_i, mask=m_i, other=0.0).to(ACCUMULATOR)[None, :]  # [1, BLOCK]
        b_mean_j = tl.load(p_mean_j + o_j, mask=m_j, other=0.0).to(ACCUMULATOR)[None, :]  # [1, BLOCK]
        b_low = tl.load(p_low + o_i, mask=m_i, other=0.0).to(ACCUMULATOR)[None, :]  # [1, BLOCK]
        b_low_j = tl.load(p_low_j + o_j, mask=m_j, other=0.0).to(ACCUMULATOR)[None, :]  # [1, BLOCK]
        b_scale, b_scale_j = b_mean, b_mean_j
        if SCALED:
            b_scale = tl.load(p_scale + o_i, mask=m_i, other=0.0)[None, :]  # [1, BLOCK]
            b_scale_j = tl.load(p_scale_j + o_j, mask=m_j, other=0.0)[None, :]  # [1, BLOCK]
        for k in range(start, stop, BLOCK_K):
            o_k = (k + tl.arange(0, BLOCK_K)).to(tl.int64)
            m_k = (o_k < rows)[:, None]  # [BLOCK_K, 1]
            b_i = _centred(p_i + o_k[:, None] * stride, m_k & m_i[None, :], b_mean, b_low, b_scale, SCALED)
            b_j = _centred(
                p_j + o_k[:, None] * stride, m_k & m_j[None, :], b_mean_j, b_low_j, b_scale_j, SCALED
            )
            b_acc = tl.dot(
                tl.trans(b_i.to(OPERAND)),
                b_j.to(OPERAND),
                b_acc,
                input_precision=PRECISION,
                out_dtype=ACCUMULATOR,
            )  # [BLOCK, BLOCK]
    else:
        p_i = p_first + o_i[:, None] * stride  # [BLOCK, 1]
        p_j = p_second + o_j[:, None] * stride  # [BLOCK, 1]
        for k in range(start, stop, BLOCK_K):
            o_k = k + tl.arange(0, BLOCK_K)
            m_k = o_k < features  # as divisible as features are, so that 16 bytes are loaded at a time
            b_mean = tl.load(p_mean + o_k, mask=m_k, other=0.0).to(ACCUMULATOR)[None, :]  # [1, BLOCK_K]
            b_low = tl.load(p_low + o_k, mask=m_k, other=0.0).to(ACCUMULATOR)[None, :]  # [1, BLOCK_K]
            b_scale = b_mean
            if SCALED:
                b_scale = tl.load(p_scale + o_k, mask=m_k, other=0.0)[None, :]  # [1, BLOCK_K]
            b_i = _centred(p_i + o_k[None, :], m_i[:, None] & m_k[None, :], b_mean, b_low, b_scale, SCALED)
            b_j = _centred(p_j + o_k[None, :], m_j[:, None] & m_k[None, :], b_mean, b_low, b_scale, SCALED)
            b_acc = tl.dot(
                b_i.to(OPERAND),
                tl.trans(b_j.to(OPERAND)),
                b_acc,
                input_precision=PRECISION,
                out_dtype=ACCUMULATOR,
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
    LOW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_d, i_view = tl.program_id(0), tl.program_id(1)
    if tl.load(p_flag + i_view) == 0:
        return
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < features
    b_mean = tl.load(p_columns + 2 * i_view * features + o_d, mask=m_d, other=0.0).to(tl.float64)[None, :]
    b_low = tl.load(p_columns + (LOW + i_view) * features + o_d, mask=m_d, other=0.0).to(tl.float64)[None, :]
    b_sum = tl.zeros([BLOCK_D], tl.float64)
    for row in range(0, rows, BLOCK_ROWS):
        o_n = row + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        m = (o_n < rows)[:, None] & m_d[None, :]  # [BLOCK_ROWS, BLOCK_D]
        p_tile = p_z + i_view * view_offset + o_n[:, None] * stride + o_d[None, :]
        b_tile = _centred(p_tile, m, b_mean, b_low, b_mean, False)  # [BLOCK_ROWS, BLOCK_D]
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
    LOW: tl.constexpr,
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
    b_low = tl.load(p_columns + (LOW + i_view) * features + o_d, mask=m_d, other=0.0).to(ACCUMULATOR)[None, :]
    b_scale = b_mean
    if BARLOW:
        b_scale = tl.load(p_columns + (5 + i_view) * features + o_d, mask=m_d, other=0.0)[None, :]
    b_acc = tl.zeros([BLOCK_N, BLOCK_D], ACCUMULATOR)
    if TILED:
        # X times the matrix; for Barlow Twins the other view times it, turned for the first view
        p_left = p_own
        p_mean_left, p_scale_left = p_columns + 2 * i_view * features, p_columns + (5 + i_view) * features
        p_low_left = p_columns + (LOW + i_view) * features
        p_right = p_matrix + i_view * tl.cast(features, tl.int64) * features
        stride_k, stride_d = features, 1
        if BARLOW:
            p_left = p_own + toward
            p_mean_left = p_columns + 2 * (1 - i_view) * features
            p_scale_left = p_columns + (6 - i_view) * features
            p_low_left = p_columns + (LOW + 1 - i_view) * features
            p_right = p_matrix
            stride_k, stride_d = tl.where(i_view == 0, 1, features), tl.where(i_view == 0, features, 1)
        for k in range(0, features, BLOCK_K):
            o_k = k + tl.arange(0, BLOCK_K)
            m_k = o_k < features
            b_mean_k = tl.load(p_mean_left + o_k, mask=m_k, other=0.0)[None, :]  # [1, BLOCK_K]
            b_low_k = tl.load(p_low_left + o_k, mask=m_k, other=0.0)[None, :]  # [1, BLOCK_K]
            b_scale_k = b_mean_k
            if BARLOW:
                b_scale_k = tl.load(p_scale_left + o_k, mask=m_k, other=0.0)[None, :]  # [1, BLOCK_K]
            p_tile = p_left + o_n[:, None] * stride + o_k[None, :]
            b_left = _centred(p_tile, m_n[:, None] & m_k[None, :], b_mean_k, b_low_k, b_scale_k, BARLOW)
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
            b_right = _centred(p_tile, m_k[:, None] & m_d[None, :], b_mean, b_low, b_scale, BARLOW)
            b_acc = tl.dot(
                b_left.to(OPERAND),
                b_right.to(OPERAND),
                b_acc,
                input_precision=PRECISION,
                out_dtype=ACCUMULATOR,
            )  # [BLOCK_N, BLOCK_D]
    p_tile = p_own + o_n[:, None] * stride + o_d[None, :]
    b_own = tl.load(p_tile, mask=m, other=0.0)  # [BLOCK_N, BLOCK_D]
    b_centred = tl.where(m, b_own.to(ACCUMULATOR) - b_mean - b_low, 0.0)  # [BLOCK_N, BLOCK_D]
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
