"""Statistics of the columns, the losses' scalars and the elementwise gradient on the GPU."""

# mypy: allow-untyped-defs
# ruff: noqa: N803, SIM102 (constexpr arguments are upper case in Triton, and are tested before anything else)
import triton
import triton.language as tl

BLOCK_D = 128  # columns of one program
BLOCK_ROWS = 16  # rows that it looks at together
PARTIALS = 8  # rows of what one program of the statistics leaves
SUMS = 16  # floats that one block of columns leaves for the loss

# Rows of what is kept per column, float32 [COLUMNS, D].
MEAN_A, SQUARE_A, MEAN_B, SQUARE_B, DIAGONAL = 0, 1, 2, 3, 4
SCALE_A, ANSWER_A, LOW_A, COLUMNS = 5, 7, 9, 11  # those of the second view follow; low: mean - float32(mean)


@triton.jit
def _merge(mean, square, count, other_mean, other_square, other_count):
    """Chan, Golub and LeVeque's merge of two parts; also the weight of the product of two differences of means."""
    total = count + other_count
    share = other_count / tl.maximum(total, 1.0)
    delta = other_mean - mean
    return mean + delta * share, square + other_square + delta * delta * (count * share), delta, count * share


@triton.jit(do_not_specialize=["rows", "rows_per_program"])
def moments_kernel(
    p_z,  # [N, D] of the first view
    p_partial,  # float32 [programs, PARTIALS, D]: mean, squares of both views, product, distance, shifts
    view_offset,  # elements from the first view's address to the second's
    rows,
    rows_per_program,
    features,
    stride,
    PAIR: tl.constexpr,
    PARTIALS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_d, i_part = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < features
    # Means are counted from the first row, so that a large common offset costs their differences nothing.
    b_shift = tl.load(p_z + o_d, mask=m_d, other=0.0).to(tl.float32)  # [BLOCK_D]
    b_shift_b = b_shift
    if PAIR:
        b_shift_b = tl.load(p_z + view_offset + o_d, mask=m_d, other=0.0).to(tl.float32)  # [BLOCK_D]
    b_mean = tl.zeros([BLOCK_D], tl.float32)
    b_square, b_mean_b, b_square_b = b_mean, b_mean, b_mean
    b_product, b_distance = b_mean, b_mean
    first = i_part * rows_per_program
    last = tl.minimum(first + rows_per_program, rows)
    for row in range(first, last, BLOCK_ROWS):
        o_n = row + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        m = (o_n < last)[:, None] & m_d[None, :]  # [BLOCK_ROWS, BLOCK_D]
        p_tile = p_z + o_n[:, None] * stride + o_d[None, :]
        count = tl.minimum(last - row, BLOCK_ROWS).to(tl.float32)
        before = (row - first).to(tl.float32)
        b_a = tl.load(p_tile, mask=m, other=0.0).to(tl.float32)  # [BLOCK_ROWS, BLOCK_D]
        b_u = tl.where(m, b_a - b_shift[None, :], 0.0)  # [BLOCK_ROWS, BLOCK_D]
        tile_mean = tl.sum(b_u, axis=0) / count  # [BLOCK_D]
        b_u = tl.where(m, b_u - tile_mean[None, :], 0.0)  # [BLOCK_ROWS, BLOCK_D]
        b_mean, b_square, delta, weight = _merge(
            b_mean, b_square, before, tile_mean, tl.sum(b_u * b_u, axis=0), count
        )
        if PAIR:
            b_b = tl.load(p_tile + view_offset, mask=m, other=0.0).to(tl.float32)  # [BLOCK_ROWS, BLOCK_D]
            b_v = tl.where(m, b_b - b_shift_b[None, :], 0.0)  # [BLOCK_ROWS, BLOCK_D]
            tile_mean = tl.sum(b_v, axis=0) / count  # [BLOCK_D]
            b_v = tl.where(m, b_v - tile_mean[None, :], 0.0)  # [BLOCK_ROWS, BLOCK_D]
            b_mean_b, b_square_b, delta_b, weight = _merge(
                b_mean_b, b_square_b, before, tile_mean, tl.sum(b_v * b_v, axis=0), count
            )
            b_product += tl.sum(b_u * b_v, axis=0) + delta * delta_b * weight
            b_distance += tl.sum((b_a - b_b) * (b_a - b_b), axis=0)
    p_out = p_partial + i_part * PARTIALS * features + o_d
    tl.store(p_out, b_mean, mask=m_d)
    tl.store(p_out + features, b_square, mask=m_d)
    tl.store(p_out + 6 * features, b_shift, mask=m_d)
    if PAIR:
        tl.store(p_out + 7 * features, b_shift_b, mask=m_d)
        tl.store(p_out + 2 * features, b_mean_b, mask=m_d)
        tl.store(p_out + 3 * features, b_square_b, mask=m_d)
        tl.store(p_out + 4 * features, b_product, mask=m_d)
        tl.store(p_out + 5 * features, b_distance, mask=m_d)


@triton.jit(do_not_specialize=["parts", "rows", "rows_per_program"])
def columns_kernel(
    p_partial,  # float32 [parts, PARTIALS, D]
    p_columns,  # float32 [COLUMNS, D]
    p_deviation,  # float32 [views, D]
    p_sums,  # float32 [blocks, SUMS]: per view hinges, trace, squared diagonal, largest of the diagonal; distance
    parts,
    rows,
    rows_per_program,
    features,
    eps,
    PAIR: tl.constexpr,
    BARLOW: tl.constexpr,
    UNBIASED: tl.constexpr,
    PARTIALS: tl.constexpr,
    LOW: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_d = tl.program_id(0)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < features
    b_mean = tl.zeros([BLOCK_D], tl.float64)
    b_square, b_mean_b, b_square_b = b_mean, b_mean, b_mean
    b_product, b_distance = b_mean, b_mean
    for part in range(parts):
        p_part = p_partial + tl.cast(PARTIALS * features, tl.int64) * part + o_d
        before = (part * rows_per_program).to(tl.float64)
        count = tl.minimum(rows - part * rows_per_program, rows_per_program).to(tl.float64)
        b_m = tl.load(p_part, mask=m_d, other=0.0).to(tl.float64)  # [BLOCK_D]
        b_s = tl.load(p_part + features, mask=m_d, other=0.0).to(tl.float64)  # [BLOCK_D]
        b_mean, b_square, delta, weight = _merge(b_mean, b_square, before, b_m, b_s, count)
        if PAIR:
            b_m = tl.load(p_part + 2 * features, mask=m_d, other=0.0).to(tl.float64)  # [BLOCK_D]
            b_s = tl.load(p_part + 3 * features, mask=m_d, other=0.0).to(tl.float64)  # [BLOCK_D]
            b_mean_b, b_square_b, delta_b, weight = _merge(b_mean_b, b_square_b, before, b_m, b_s, count)
            b_product += tl.load(p_part + 4 * features, mask=m_d, other=0.0) + delta * delta_b * weight
            b_distance += tl.load(p_part + 5 * features, mask=m_d, other=0.0)
    b_mean += tl.load(p_partial + 6 * features + o_d, mask=m_d, other=0.0)
    if PAIR:
        b_mean_b += tl.load(p_partial + 7 * features + o_d, mask=m_d, other=0.0)
    p_out = p_columns + o_d
    p_block = p_sums + i_d * SUMS
    n = rows.to(tl.float64)
    tl.store(p_out, b_mean, mask=m_d)
    tl.store(p_out + features, b_square, mask=m_d)
    tl.store(p_out + LOW * features, b_mean - b_mean.to(tl.float32), mask=m_d)
    b_deviation = tl.sqrt(b_square / (n - 1.0))  # [BLOCK_D]
    tl.store(p_deviation + o_d, b_deviation, mask=m_d)
    if PAIR:
        tl.store(p_out + 2 * features, b_mean_b, mask=m_d)
        tl.store(p_out + 3 * features, b_square_b, mask=m_d)
        tl.store(p_out + (LOW + 1) * features, b_mean_b - b_mean_b.to(tl.float32), mask=m_d)
        b_deviation_b = tl.sqrt(b_square_b / (n - 1.0))  # [BLOCK_D]
        tl.store(p_deviation + features + o_d, b_deviation_b, mask=m_d)
    if BARLOW:
        if UNBIASED:
            b_scale, b_scale_b = 1.0 / (b_deviation + eps), 1.0 / (b_deviation_b + eps)
            b_answer = tl.where(b_deviation == 0, 0.0, 1.0 / ((n - 1.0) * b_deviation))
            b_answer_b = tl.where(b_deviation_b == 0, 0.0, 1.0 / ((n - 1.0) * b_deviation_b))
        else:
            b_scale, b_scale_b = 1.0 / tl.sqrt(b_square / n + eps), 1.0 / tl.sqrt(b_square_b / n + eps)
            b_answer, b_answer_b = b_scale / n, b_scale_b / n
        b_diagonal = b_scale * b_scale_b * b_product / n  # [BLOCK_D]
        tl.store(p_out + 4 * features, b_diagonal, mask=m_d)
        tl.store(p_out + 5 * features, b_scale, mask=m_d)
        tl.store(p_out + 6 * features, b_scale_b, mask=m_d)
        tl.store(p_out + 7 * features, b_answer, mask=m_d)
        tl.store(p_out + 8 * features, b_answer_b, mask=m_d)
        b_off = b_diagonal - 1.0
        tl.store(p_block, tl.sum(tl.where(m_d, b_off * b_off, 0.0), axis=0))
        tl.store(p_block + 1, tl.sum(tl.where(m_d, b_diagonal, 0.0), axis=0))
        tl.store(p_block + 2, tl.sum(tl.where(m_d, b_diagonal * b_diagonal, 0.0), axis=0))
    else:
        b_hinge = 1.0 - tl.sqrt(
            b_square / (n - 1.0) + eps
        )  # [BLOCK_D]; what is not a number fails the comparison
        tl.store(p_block, tl.sum(tl.where(m_d & ~(b_hinge <= 0.0), b_hinge, 0.0), axis=0))
        tl.store(p_block + 1, tl.sum(tl.where(m_d, b_square, 0.0), axis=0))
        tl.store(p_block + 2, tl.sum(tl.where(m_d, b_square * b_square, 0.0), axis=0))
        tl.store(p_block + 3, tl.max(tl.where(m_d, b_square, 0.0), axis=0))
        if PAIR:
            b_hinge = 1.0 - tl.sqrt(b_square_b / (n - 1.0) + eps)  # [BLOCK_D]
            tl.store(p_block + 4, tl.sum(tl.where(m_d & ~(b_hinge <= 0.0), b_hinge, 0.0), axis=0))
            tl.store(p_block + 5, tl.sum(tl.where(m_d, b_square_b, 0.0), axis=0))
            tl.store(p_block + 6, tl.sum(tl.where(m_d, b_square_b * b_square_b, 0.0), axis=0))
            tl.store(p_block + 7, tl.max(tl.where(m_d, b_square_b, 0.0), axis=0))
            tl.store(p_block + 8, tl.sum(tl.where(m_d, b_distance, 0.0), axis=0))


@triton.jit
def _total(p_values, count, stride, BLOCK: tl.constexpr):
    """The sum of strided values in float64, in a fixed order."""
    o = tl.arange(0, BLOCK)
    b_sum = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        b_sum += tl.load(p_values + (start + o) * stride, mask=start + o < count, other=0.0).to(tl.float64)
    return tl.sum(b_sum, axis=0)


@triton.jit
def _largest(p_values, count, stride, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    b_max = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        b_max = tl.maximum(b_max, tl.load(p_values + (start + o) * stride, mask=start + o < count, other=0.0))
    return tl.max(b_max, axis=0)


@triton.jit(do_not_specialize=["blocks", "tiles"])
def loss_kernel(
    p_loss,  # float32 [1]
    p_rank,  # float32 [views], or [1] for Barlow Twins
    p_flag,  # int32 [views]: whether the Gram form cancels too much; read if EXACT, written if not
    p_sums,  # float32 [blocks, SUMS]
    p_squares,  # float32 [views, tiles], sums of squared products
    p_exact_squares,  # float64 [views, tiles], the same where the flag is set, read if EXACT
    p_exact,  # float64 [views, blocks], sums of the squared diagonal where the flag is set, read if EXACT
    blocks,
    tiles,
    invariance,  # weight over N D
    variance,  # weight over D; of the whole loss for Barlow Twins
    covariance,  # what one squared product counts
    off_diagonal,  # Barlow Twins' weight
    most_cancellation,
    VIEWS: tl.constexpr,
    BARLOW: tl.constexpr,
    PRODUCTS: tl.constexpr,
    GRAM: tl.constexpr,
    EXACT: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if EXACT:
        cancels = tl.load(p_flag)
        if VIEWS == 2:
            cancels = cancels | tl.load(p_flag + 1)
        if cancels == 0:
            return
    loss = tl.zeros([], tl.float64)
    if BARLOW:
        on_diagonal = _total(p_sums, blocks, SUMS, BLOCK)
        trace = _total(p_sums + 1, blocks, SUMS, BLOCK)
        diagonal = _total(p_sums + 2, blocks, SUMS, BLOCK)
        pairs = covariance * _total(p_squares, tiles, 1, BLOCK)
        if GRAM:
            pairs -= diagonal
        loss = variance * (on_diagonal + off_diagonal * pairs)
        tl.store(p_rank, (trace * trace / (pairs + diagonal)).to(tl.float32))
    else:
        for view in tl.static_range(VIEWS):
            loss += variance * _total(p_sums + 4 * view, blocks, SUMS, BLOCK)
            if PRODUCTS:
                trace = _total(p_sums + 4 * view + 1, blocks, SUMS, BLOCK)
                diagonal = _total(p_sums + 4 * view + 2, blocks, SUMS, BLOCK)
                largest = _largest(p_sums + 4 * view + 3, blocks, SUMS, BLOCK)
                pairs = _total(p_squares + view * tiles, tiles, 1, BLOCK)
                if GRAM:
                    pairs -= diagonal
                if EXACT:
                    if tl.load(p_flag + view) != 0:
                        pairs = _total(p_exact_squares + view * tiles, tiles, 1, BLOCK)
                        pairs -= _total(p_exact + view * blocks, blocks, 1, BLOCK)
                elif GRAM:
                    cancels = largest * trace > most_cancellation * pairs
                    tl.store(p_flag + view, cancels.to(tl.int32))
                loss += covariance * pairs
                tl.store(p_rank + view, (trace * trace / (pairs + diagonal)).to(tl.float32))
            else:
                tl.store(p_rank + view, float("nan"))
        if VIEWS == 2:
            # A weight of 0 leaves a term out, whatever its value.
            if invariance != 0.0:
                loss += invariance * _total(p_sums + 8, blocks, SUMS, BLOCK)
    tl.store(p_loss, loss.to(tl.float32))


@triton.jit(do_not_specialize=["rows", "parts"])
def finish_kernel(
    p_z,  # [N, D] of the first view
    p_columns,  # float32 [COLUMNS, D]
    p_product,  # float32 [views, N, D], read if BARLOW; may be the output itself
    p_dots,  # float32 [views, parts, D], read if BARLOW
    p_out,  # [N, D] of the first view, contiguous
    view_offset,
    product_offset,  # elements from the first view's product to the second's, and the same for the output
    out_offset,
    rows,
    parts,
    features,
    stride,
    eps,
    hinge,  # variance weight / (D (N - 1))
    distance,  # 2 invariance weight / (N D)
    of_product,  # Barlow Twins: 2 off_diagonal * weight / N^2
    off_diagonal,
    weight,
    PAIR: tl.constexpr,
    BARLOW: tl.constexpr,
    GRAM: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_d, i_n, i_view = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    o_n = i_n * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    m_d = o_d < features
    m = (o_n < rows)[:, None] & m_d[None, :]  # [BLOCK_ROWS, BLOCK_D]
    p_tile = p_z + o_n[:, None] * stride + o_d[None, :]
    toward = tl.where(i_view == 0, view_offset, -view_offset)  # from this view to the other
    p_own = p_tile + i_view * view_offset
    p_column = p_columns + o_d
    n = rows.to(tl.float32)
    b_mean = tl.load(p_column + 2 * i_view * features, mask=m_d, other=0.0)  # [BLOCK_D]
    b_low = tl.load(p_column + (LOW + i_view) * features, mask=m_d, other=0.0)  # [BLOCK_D]
    b_own = tl.load(p_own, mask=m, other=0.0).to(tl.float32)  # [BLOCK_ROWS, BLOCK_D]
    o_out = o_n[:, None] * features + o_d[None, :]
    if BARLOW:
        b_mean_b = tl.load(p_column + 2 * (1 - i_view) * features, mask=m_d, other=0.0)  # [BLOCK_D]
        b_low_b = tl.load(p_column + (LOW + 1 - i_view) * features, mask=m_d, other=0.0)  # [BLOCK_D]
        b_diagonal = tl.load(p_column + 4 * features, mask=m_d, other=0.0)  # [BLOCK_D]
        b_scale = tl.load(p_column + (5 + i_view) * features, mask=m_d, other=0.0)  # [BLOCK_D]
        b_scale_b = tl.load(p_column + (6 - i_view) * features, mask=m_d, other=0.0)  # [BLOCK_D]
        b_answer = tl.load(p_column + (7 + i_view) * features, mask=m_d, other=0.0)  # [BLOCK_D]
        b_dot = tl.zeros([BLOCK_D], tl.float32)
        for part in range(parts):
            b_dot += tl.load(p_dots + (i_view * parts + part) * features + o_d, mask=m_d, other=0.0)
        b_slope = b_diagonal - 1.0  # [BLOCK_D]
        if GRAM:
            b_slope -= off_diagonal * b_diagonal
        b_slope *= 2.0 * weight
        b_along = of_product * b_dot + b_slope * b_diagonal  # [BLOCK_D]
        b_product = tl.load(p_product + i_view * product_offset + o_out, mask=m, other=0.0)
        b_other = tl.load(p_own + toward, mask=m, other=0.0).to(tl.float32)  # [BLOCK_ROWS, BLOCK_D]
        b_value = (b_scale * of_product)[None, :] * b_product
        b_value -= (b_answer * b_along * b_scale)[None, :] * (b_own - b_mean[None, :] - b_low[None, :])
        b_value += (b_scale * b_slope * b_scale_b / n)[None, :] * (
            b_other - b_mean_b[None, :] - b_low_b[None, :]
        )
    else:
        b_square = tl.load(p_column + (2 * i_view + 1) * features, mask=m_d, other=0.0)  # [BLOCK_D]
        b_smooth = tl.sqrt(b_square / (n - 1.0) + eps)  # [BLOCK_D]
        b_slope = tl.where((b_smooth < 1.0) & (hinge != 0.0), -hinge / b_smooth, 0.0)  # [BLOCK_D]
        b_value = b_slope[None, :] * (b_own - b_mean[None, :] - b_low[None, :])  # [BLOCK_ROWS, BLOCK_D]
        if PAIR:
            b_other = tl.load(p_own + toward, mask=m, other=0.0).to(tl.float32)  # [BLOCK_ROWS, BLOCK_D]
            b_value += distance * (b_own - b_other)
    tl.store(p_out + i_view * out_offset + o_out, b_value.to(p_out.dtype.element_ty), mask=m)
