"""Rotary positions on tiles of a head: forward as rows are loaded, transposed before gradients are stored.

Both pairings are one formula (kernels/rope/tables.py): the two channels of a pair have their own cosine and sine.
"""

# mypy: allow-untyped-defs
# mypy: disable-error-code=assignment
# Tuples of parts grow while a kernel is compiled.
import triton
import triton.language as tl


@triton.jit
def _angles(p_table, o_row, m_row, START: tl.constexpr, PART: tl.constexpr, HEAD_DIM: tl.constexpr):
    """The even and the odd channels of a table's rows."""
    o_d = START + tl.arange(0, PART)
    p_tile = p_table + o_row[:, None] * HEAD_DIM + o_d[None, :]  # [ROWS, PART]
    b_tile = tl.load(p_tile, mask=m_row[:, None] & (o_d[None, :] < HEAD_DIM), other=0.0)  # [ROWS, PART]
    return tl.split(tl.reshape(b_tile, [b_tile.shape[0], PART // 2, 2]))


@triton.jit
def _rotate(
    b_part,
    p_cos,
    p_sin,
    o_row,
    m_row,
    START: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    ROWS: tl.constexpr = b_part.shape[0]
    PART: tl.constexpr = b_part.shape[1]
    b_cos_even, b_cos_odd = _angles(p_cos, o_row, m_row, START, PART, HEAD_DIM)  # [ROWS, PART / 2]
    b_sin_even, b_sin_odd = _angles(p_sin, o_row, m_row, START, PART, HEAD_DIM)  # [ROWS, PART / 2]
    b_even, b_odd = tl.split(tl.reshape(b_part.to(tl.float32), [ROWS, PART // 2, 2]))  # [ROWS, PART / 2]
    if TRANSPOSED:
        b_first = b_even * b_cos_even + b_odd * b_sin_odd  # [ROWS, PART / 2]
        b_second = b_odd * b_cos_odd - b_even * b_sin_even  # [ROWS, PART / 2]
    else:
        b_first = b_even * b_cos_even - b_odd * b_sin_even  # [ROWS, PART / 2]
        b_second = b_odd * b_cos_odd + b_even * b_sin_odd  # [ROWS, PART / 2]
    return tl.reshape(tl.join(b_first, b_second), [ROWS, PART]).to(b_part.dtype)


@triton.jit
def rotated(
    b_tile, p_cos, p_sin, o_row, m_row, HEAD_DIM: tl.constexpr, TRANSPOSED: tl.constexpr, ROPE: tl.constexpr
):
    """The tile's rows turned by the angles of their rows in the tables; as it is if there are none (ROPE false)."""
    if ROPE:
        P0: tl.constexpr = b_tile[0].shape[1]
        b_result = (_rotate(b_tile[0], p_cos, p_sin, o_row, m_row, 0, HEAD_DIM, TRANSPOSED),)
        if len(b_tile) > 1:
            b_result = b_result + (_rotate(b_tile[1], p_cos, p_sin, o_row, m_row, P0, HEAD_DIM, TRANSPOSED),)
        if len(b_tile) > 2:
            P1: tl.constexpr = b_tile[1].shape[1]
            b_result = b_result + (
                _rotate(b_tile[2], p_cos, p_sin, o_row, m_row, P0 + P1, HEAD_DIM, TRANSPOSED),
            )
        return b_result
    else:
        return b_tile
