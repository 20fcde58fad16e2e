"""Tiles of a head: [rows, head_dim] held as one to three parts whose widths are powers of two.

Triton's blocks have power-of-two sides. A head of 80 channels is therefore a part of 64 and one of 16 instead of 128
channels of which 48 are zero; products over channels are sums over the parts, products with channels are one per
part. What is multiplied is the head rounded up to 16, the granule of the tensor cores.

Strides come in units of 8 elements: Triton then knows that every row begins at a multiple of 16 bytes, also where
head_dim is no multiple of 16, and moves 16 bytes per access.
"""

# mypy: allow-untyped-defs
# mypy: disable-error-code=assignment
# Tuples of parts grow while a kernel is compiled.
import triton
import triton.language as tl

OCTET: tl.constexpr = tl.constexpr(8)


@triton.jit
def rows(p_tensor, i_sample, i_row, i_head, strides):
    """Where a head's row begins; strides: of sample, token and head. A tensor can pass 2**31 elements."""
    octets = (
        i_sample.to(tl.int64) * strides[0]
        + strides[1].to(tl.int64) * i_row
        + strides[2].to(tl.int64) * i_head
    )
    return p_tensor + octets * OCTET


@triton.jit
def contiguous_rows(p_tensor, i_sample, i_row, i_head, heads, rows_per_sample, HEAD_DIM: tl.constexpr):
    """`rows` of a contiguous tensor; a packed one has rows_per_sample = 0."""
    token = i_sample.to(tl.int64) * rows_per_sample + i_row
    return p_tensor + (token * heads + i_head) * (HEAD_DIM // OCTET) * OCTET


@triton.jit
def statistics_row(i_sample, i_row, i_head, heads, rows_per_sample, length):
    """Index of a row in `[B, H, N]`, or in packed `[H, total]`, which has rows_per_sample = 0."""
    return i_sample.to(tl.int64) * heads * rows_per_sample + length.to(tl.int64) * i_head + i_row


@triton.jit
def _load(p_rows, o_row, m_row, stride, START: tl.constexpr, PART: tl.constexpr, HEAD_DIM: tl.constexpr):
    o_d = START + tl.arange(0, PART)
    p_tile = p_rows + o_row[:, None] * (stride * OCTET) + o_d[None, :]  # [ROWS, PART]
    if m_row is not None:
        m_tile = m_row[:, None] if START + PART <= HEAD_DIM else m_row[:, None] & (o_d[None, :] < HEAD_DIM)
        return tl.load(p_tile, mask=m_tile, other=0.0)
    elif START + PART <= HEAD_DIM:
        return tl.load(p_tile)
    else:
        return tl.load(p_tile, mask=o_d[None, :] < HEAD_DIM, other=0.0)


@triton.jit
def load(
    p_rows,
    o_row,
    m_row,
    stride,
    HEAD_DIM: tl.constexpr,
    PART_0: tl.constexpr,
    PART_1: tl.constexpr,
    PART_2: tl.constexpr,
):
    """Rows o_row of a head, zeros where m_row is false; m_row None: all rows exist."""
    b_0 = _load(p_rows, o_row, m_row, stride, 0, PART_0, HEAD_DIM)  # [ROWS, PART_0]
    if PART_2 > 0:
        b_1 = _load(p_rows, o_row, m_row, stride, PART_0, PART_1, HEAD_DIM)  # [ROWS, PART_1]
        b_2 = _load(p_rows, o_row, m_row, stride, PART_0 + PART_1, PART_2, HEAD_DIM)  # [ROWS, PART_2]
        return b_0, b_1, b_2
    elif PART_1 > 0:
        return b_0, _load(p_rows, o_row, m_row, stride, PART_0, PART_1, HEAD_DIM)
    else:
        return (b_0,)


@triton.jit
def _store(p_rows, o_row, m_row, stride, b_part, START: tl.constexpr, HEAD_DIM: tl.constexpr):
    PART: tl.constexpr = b_part.shape[1]
    o_d = START + tl.arange(0, PART)
    m_tile = m_row[:, None] if START + PART <= HEAD_DIM else m_row[:, None] & (o_d[None, :] < HEAD_DIM)
    p_tile = p_rows + o_row[:, None] * (stride * OCTET) + o_d[None, :]  # [ROWS, PART]
    tl.store(p_tile, b_part.to(p_rows.dtype.element_ty), mask=m_tile)


@triton.jit
def store(p_rows, o_row, m_row, stride, b_tile, HEAD_DIM: tl.constexpr):
    _store(p_rows, o_row, m_row, stride, b_tile[0], 0, HEAD_DIM)
    if len(b_tile) > 1:
        _store(p_rows, o_row, m_row, stride, b_tile[1], b_tile[0].shape[1], HEAD_DIM)
    if len(b_tile) > 2:
        _store(p_rows, o_row, m_row, stride, b_tile[2], b_tile[0].shape[1] + b_tile[1].shape[1], HEAD_DIM)


@triton.jit
def zeros(ROWS: tl.constexpr, PART_0: tl.constexpr, PART_1: tl.constexpr, PART_2: tl.constexpr):
    b_0 = tl.zeros([ROWS, PART_0], dtype=tl.float32)
    if PART_2 > 0:
        return b_0, tl.zeros([ROWS, PART_1], dtype=tl.float32), tl.zeros([ROWS, PART_2], dtype=tl.float32)
    elif PART_1 > 0:
        return b_0, tl.zeros([ROWS, PART_1], dtype=tl.float32)
    else:
        return (b_0,)


@triton.jit
def scaled(b_tile, factor):
    b_result = (b_tile[0] * factor,)
    for i in tl.static_range(1, len(b_tile)):
        b_result = b_result + (b_tile[i] * factor,)
    return b_result


@triton.jit
def row_sums(b_left, b_right):
    """Sum over the channels of the product, in float32."""
    b_sum = tl.sum(b_left[0].to(tl.float32) * b_right[0].to(tl.float32), axis=1)  # [ROWS]
    for i in tl.static_range(1, len(b_left)):
        b_sum += tl.sum(b_left[i].to(tl.float32) * b_right[i].to(tl.float32), axis=1)  # [ROWS]
    return b_sum


@triton.jit
def over_channels(b_left, b_right, PRECISION: tl.constexpr, APART: tl.constexpr):
    """left @ right^T, [ROWS of left, ROWS of right].

    APART: the parts' products are formed each for itself and summed in registers; else one product adds to the other.
    Where sums stand in tensor memory (sm_100) Triton would take the first product from there through registers back,
    and wait for it in between, before the second begins; apart, all are under way before any is waited for.
    """
    b_product = tl.dot(b_left[0], tl.trans(b_right[0]), input_precision=PRECISION)
    for i in tl.static_range(1, len(b_left)):
        if APART:
            b_part = tl.dot(b_left[i], tl.trans(b_right[i]), input_precision=PRECISION)
            # Of product + sum Triton makes the other form again; ptxas makes an addition of this.
            b_product = tl.fma(b_part, 1.0, b_product)
        else:
            b_product = tl.dot(b_left[i], tl.trans(b_right[i]), b_product, input_precision=PRECISION)
    return b_product


@triton.jit
def add_product(b_sum, b_weights, b_tile, PRECISION: tl.constexpr):
    """sum + weights @ tile; weights are rounded to the type of the tile, as every 16-bit attention does."""
    b_rounded = b_weights.to(b_tile[0].dtype)
    b_result = (tl.dot(b_rounded, b_tile[0], b_sum[0], input_precision=PRECISION),)
    for i in tl.static_range(1, len(b_tile)):
        b_result = b_result + (tl.dot(b_rounded, b_tile[i], b_sum[i], input_precision=PRECISION),)
    return b_result
