"""Patch embedding on the GPU: a matrix product whose first operand is gathered from pixels or rows as it is loaded, and
the pass that makes rows."""

# mypy: allow-untyped-defs
# ruff: noqa: N803 (constexpr arguments are upper case in Triton)
import triton
import triton.language as tl


@triton.jit
def _place(
    o_k,
    stride_channel,
    stride_frame,
    stride_line,
    TUBELET: tl.constexpr,
    SIDE: tl.constexpr,
    PX: tl.constexpr,
):
    """Of values counted by line and by PX >= SIDE pixels in a line: channel, line in the patch, place from the patch's
    first pixel, and whether there is such a pixel."""
    o_line, o_px = o_k // PX, o_k % PX
    o_channel, o_rest = o_line // (TUBELET * SIDE), o_line % (TUBELET * SIDE)
    o_pixel = o_channel * stride_channel + o_rest // SIDE * stride_frame + o_rest % SIDE * stride_line + o_px
    return o_channel, o_line, o_pixel, o_px < SIDE


@triton.jit
def _first_pixel(
    o_sample, b_token, grid_rows, grid_columns, stride_sample, stride_frame, stride_line,
    TUBELET: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """Place of the first pixel of each token's patch."""
    b_in_frame = b_token % (grid_rows * grid_columns)
    o_frame, o_row, o_column = (
        b_token // (grid_rows * grid_columns),
        b_in_frame // grid_columns,
        b_in_frame % grid_columns,
    )
    return (
        o_sample.to(tl.int64) * stride_sample
        + o_frame.to(tl.int64) * (TUBELET * stride_frame)
        + o_row.to(tl.int64) * (SIDE * stride_line)
        + o_column * SIDE
    )


EMBED_INTEGERS = (
    "rows",
    "tokens",
    "samples",
    "length",
    "features",
    "indexed",
    "positions",
    "grid_rows",
    "grid_columns",
)


@triton.jit(do_not_specialize=[n for n in EMBED_INTEGERS if n != "features"])
def embed_kernel(
    p_pixels,  # [B, C, T, H, W]; rows [B, N, values] if SIDE is 0
    p_weight,  # [D, values], each line of a patch padded to PX
    p_bias,  # float32 [D]
    p_index,  # int64 [rows], read if indexed
    p_position,  # float32 [N, D], read if positions
    p_scale,  # float32 [C], read if NORMALIZE
    p_shift,
    p_out,  # [rows, D]
    rows,
    tokens,
    samples,
    length,
    features,
    indexed,
    positions,
    grid_rows,
    grid_columns,
    values,  # of a row of the weight
    stride_sample,
    stride_channel,
    stride_frame,
    stride_line,  # of a row if SIDE is 0
    NORMALIZE: tl.constexpr,
    TUBELET: tl.constexpr,
    SIDE: tl.constexpr,
    PX: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    m_m, m_n = o_m < rows, o_n < features
    o_sample = o_m // tokens % samples  # [BLOCK_M]
    b_token = (o_m % tokens).to(tl.int64)  # [BLOCK_M]
    if indexed != 0:
        b_token = tl.load(p_index + o_m, mask=m_m, other=0)
    m_inside = m_m & (b_token >= 0) & (b_token < length)
    b_safe = tl.where(m_inside, b_token, 0).to(tl.int32)  # [BLOCK_M]
    if SIDE == 0:
        o_first = o_sample.to(tl.int64) * stride_sample + b_safe.to(tl.int64) * stride_line
    else:
        o_first = _first_pixel(
            o_sample, b_safe, grid_rows, grid_columns, stride_sample, stride_frame, stride_line, TUBELET, SIDE
        )
    b_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, values, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        m_k = o_k < values
        b_weight = tl.load(
            p_weight + o_n.to(tl.int64)[None, :] * values + o_k[:, None],
            mask=m_k[:, None] & m_n[None, :],
            other=0.0,
        )  # [BLOCK_K, BLOCK_N]
        if SIDE == 0:
            b_x = tl.load(
                p_pixels + o_first[:, None] + o_k[None, :], mask=m_inside[:, None] & m_k[None, :], other=0.0
            )  # [BLOCK_M, BLOCK_K]
        else:
            o_channel, _, o_pixel, m_px = _place(
                o_k, stride_channel, stride_frame, stride_line, TUBELET, SIDE, PX
            )
            m_read = m_k
            if SIDE != PX:
                m_read = m_k & m_px
            m_x = m_inside[:, None] & m_read[None, :]  # [BLOCK_M, BLOCK_K]
            b_x = tl.load(p_pixels + o_first[:, None] + o_pixel[None, :], mask=m_x, other=0)
            if NORMALIZE:
                b_scale = tl.load(p_scale + o_channel, mask=m_k, other=0.0)[None, :]  # [1, BLOCK_K]
                b_shift = tl.load(p_shift + o_channel, mask=m_k, other=0.0)[None, :]  # [1, BLOCK_K]
                b_x = tl.where(m_x, b_x.to(tl.float32) * b_scale + b_shift, 0.0)
        b_acc = tl.dot(b_x.to(OPERAND), b_weight, b_acc, input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    b_acc += tl.load(p_bias + o_n, mask=m_n, other=0.0)[None, :]
    m_out = m_m[:, None] & m_n[None, :]  # [BLOCK_M, BLOCK_N]
    o_position = b_safe.to(tl.int64)[:, None] * features + o_n[None, :]  # [BLOCK_M, BLOCK_N]
    b_acc += tl.load(p_position + o_position, mask=m_out & (positions != 0), other=0.0)
    # A host check of the index would stop the stream: a row from outside shows as NaN instead.
    b_acc = tl.where(m_inside[:, None], b_acc, float("nan"))
    o_out = o_m.to(tl.int64)[:, None] * features + o_n[None, :]  # [BLOCK_M, BLOCK_N]
    tl.store(p_out + o_out, b_acc.to(p_out.dtype.element_ty), mask=m_out)


COPY_INTEGERS = ("rows", "tokens", "samples", "length", "indexed", "grid_rows", "grid_columns", "lines")


@triton.jit(do_not_specialize=COPY_INTEGERS)
def copy_kernel(
    p_pixels,  # [B, C, T, H, W]
    p_index,  # int64 [rows], read if indexed
    p_scale,  # float32 [C], read if NORMALIZE
    p_shift,
    p_out,  # [rows, >= lines * SIDE]
    rows,
    tokens,
    samples,
    length,
    indexed,
    grid_rows,
    grid_columns,
    lines,  # of a patch: channels * TUBELET * SIDE
    stride_sample,
    stride_channel,
    stride_frame,
    stride_line,
    pitch,
    NORMALIZE: tl.constexpr,
    TUBELET: tl.constexpr,
    SIDE: tl.constexpr,
    PX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    m_row = o_row < rows
    b_token = (o_row % tokens).to(tl.int64)  # [ROWS]
    if indexed != 0:
        b_token = tl.load(p_index + o_row, mask=m_row, other=0)
    m_row = m_row & (b_token >= 0) & (b_token < length)  # what is outside has no gradient to take part in
    b_safe = tl.where(m_row, b_token, 0).to(tl.int32)  # [ROWS]
    o_first = _first_pixel(
        o_row // tokens % samples, b_safe, grid_rows, grid_columns, stride_sample, stride_frame, stride_line,
        TUBELET, SIDE,
    )  # fmt: skip
    m_write = o_row < rows
    for start in range(0, lines * PX, BLOCK):
        o_k = start + tl.arange(0, BLOCK)  # [BLOCK]
        o_channel, o_line, o_pixel, m_px = _place(
            o_k, stride_channel, stride_frame, stride_line, TUBELET, SIDE, PX
        )
        m_k = o_line < lines
        if SIDE != PX:
            m_k = m_k & m_px
        b_x = tl.load(
            p_pixels + o_first[:, None] + o_pixel[None, :], mask=m_row[:, None] & m_k[None, :], other=0
        ).to(tl.float32)  # [ROWS, BLOCK]
        if NORMALIZE:
            b_scale = tl.load(p_scale + o_channel, mask=m_k, other=0.0)[None, :]  # [1, BLOCK]
            b_x = b_x * b_scale + tl.load(p_shift + o_channel, mask=m_k, other=0.0)[None, :]
        b_x = tl.where(m_row[:, None], b_x, 0.0)
        o_out = o_row.to(tl.int64)[:, None] * pitch + (o_line * SIDE + o_k % PX)[None, :]  # [ROWS, BLOCK]
        tl.store(p_out + o_out, b_x.to(p_out.dtype.element_ty), mask=m_write[:, None] & m_k[None, :])
