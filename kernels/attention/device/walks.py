"""The two walks of the backward: over the keys for a tile of queries, over the queries for a tile of keys."""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

from . import backward, mask, rotary, tiles


@triton.jit
def query_gradients(
    p_query,
    p_key,
    p_value,
    p_grad_out,
    p_out,
    p_lse,
    p_delta,
    p_grad_query,
    p_cos_q,
    p_sin_q,
    p_cos_k,
    p_sin_k,
    strides_query,
    strides_key,
    strides_value,
    strides_grad,
    lists,
    numbers,
    i_sample,
    i_head,
    first_query,
    heads_q,
    group,
    length_q,
    sample_q,
    first_q,
    rows_q,
    first_k,
    rows_k,
    scale,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    PART_0: tl.constexpr,
    PART_1: tl.constexpr,
    PART_2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    APART: tl.constexpr,
    MASK: tl.constexpr,
    BRANCH: tl.constexpr,
    ROPE: tl.constexpr,
    FORM_DELTA: tl.constexpr,
):
    """dQ of a query tile. FORM_DELTA: also write the tile's delta, which else is read."""
    i_head_k = i_head // group
    i_row = first_q + first_query
    o_m = tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    o_query = first_query + o_m
    m_query = o_query < rows_q
    stride_out = heads_q * (HEAD_DIM // tiles.OCTET)
    p_q = tiles.rows(p_query, i_sample, i_row, i_head, strides_query)
    p_g = tiles.rows(p_grad_out, i_sample, i_row, i_head, strides_grad)
    p_k = tiles.rows(p_key, i_sample, first_k, i_head_k, strides_key)
    p_v = tiles.rows(p_value, i_sample, first_k, i_head_k, strides_value)
    b_query = tiles.load(p_q, o_m, m_query, strides_query[1], HEAD_DIM, PART_0, PART_1, PART_2)
    b_query = rotary.rotated(b_query, p_cos_q, p_sin_q, o_query, m_query, HEAD_DIM, False, ROPE)
    b_grad_out = tiles.load(p_g, o_m, m_query, strides_grad[1], HEAD_DIM, PART_0, PART_1, PART_2)
    statistics = tiles.statistics_row(i_sample, i_row, i_head, heads_q, sample_q, length_q)
    b_lse = backward.log2_sums(p_lse + statistics, o_m, m_query)  # [BLOCK_M]
    if FORM_DELTA:
        p_o = tiles.contiguous_rows(p_out, i_sample, i_row, i_head, heads_q, sample_q, HEAD_DIM)
        b_out = tiles.load(p_o, o_m, m_query, stride_out, HEAD_DIM, PART_0, PART_1, PART_2)
        b_delta = tiles.row_sums(b_out, b_grad_out)  # [BLOCK_M]
        tl.store(p_delta + statistics + o_m, b_delta, mask=m_query)
    else:
        b_delta = tl.load(p_delta + statistics + o_m, mask=m_query, other=0.0)  # [BLOCK_M]
    b_grad_query = tiles.zeros(BLOCK_M, PART_0, PART_1, PART_2)  # [BLOCK_M, HEAD_DIM]
    plan = mask.key_plan(
        lists, numbers, i_sample, i_head, first_query, rows_q, rows_k, BLOCK_M, BLOCK_N, MASK
    )
    for i_tile in range(plan[0], plan[1]):
        start, place = mask.tile(lists, plan, i_tile, numbers[1], BLOCK_N, MASK)
        o_key = start + o_n
        m_key = o_key < rows_k
        p_kt = p_k + start * (strides_key[1].to(tl.int64) * tiles.OCTET)
        p_vt = p_v + start * (strides_value[1].to(tl.int64) * tiles.OCTET)
        b_key = tiles.load(p_kt, o_n, m_key, strides_key[1], HEAD_DIM, PART_0, PART_1, PART_2)
        b_key = rotary.rotated(b_key, p_cos_k, p_sin_k, o_key, m_key, HEAD_DIM, False, ROPE)
        b_value = tiles.load(p_vt, o_n, m_key, strides_value[1], HEAD_DIM, PART_0, PART_1, PART_2)
        b_grad_query = backward.add_query_gradient(
            b_grad_query, b_query, b_grad_out, b_lse, b_delta, b_key, b_value,
            lists, numbers, plan, i_tile, place, first_query, start, o_query, o_key, rows_k, scale_log2, PRECISION,
            APART, MASK, BRANCH,
        )  # fmt: skip
    b_grad_query = tiles.scaled(b_grad_query, scale)
    b_grad_query = rotary.rotated(b_grad_query, p_cos_q, p_sin_q, o_query, m_query, HEAD_DIM, True, ROPE)
    p_gq = tiles.contiguous_rows(p_grad_query, i_sample, i_row, i_head, heads_q, sample_q, HEAD_DIM)
    tiles.store(p_gq, o_m, m_query, stride_out, b_grad_query, HEAD_DIM)


@triton.jit
def key_gradient_step(
    b_grad_key,
    b_grad_value,
    b_key,
    b_value,
    p_query,
    p_grad_out,
    p_lse,
    p_delta,
    p_cos,
    p_sin,
    strides_query,
    strides_grad,
    lists,
    numbers,
    plan,
    i_tile,
    i_sample,
    i_head,
    heads_q,
    length_q,
    sample_q,
    first_q,
    rows_q,
    rows_k,
    first_key,
    o_key,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    PART_0: tl.constexpr,
    PART_1: tl.constexpr,
    PART_2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
    APART: tl.constexpr,
    MASK: tl.constexpr,
    BRANCH: tl.constexpr,
    ROPE: tl.constexpr,
):
    """(dK / scale, dV) of a key tile plus what a query tile of a head adds."""
    start, place = mask.tile(lists, plan, i_tile, numbers[0], BLOCK_M, MASK)
    i_row = first_q + start
    o_m = tl.arange(0, BLOCK_M)
    o_query = start + o_m
    m_query = o_query < rows_q
    p_q = tiles.rows(p_query, i_sample, i_row, i_head, strides_query)
    p_g = tiles.rows(p_grad_out, i_sample, i_row, i_head, strides_grad)
    statistics = tiles.statistics_row(i_sample, i_row, i_head, heads_q, sample_q, length_q)
    b_query = tiles.load(p_q, o_m, m_query, strides_query[1], HEAD_DIM, PART_0, PART_1, PART_2)
    b_query = rotary.rotated(b_query, p_cos, p_sin, o_query, m_query, HEAD_DIM, False, ROPE)
    b_grad_out = tiles.load(p_g, o_m, m_query, strides_grad[1], HEAD_DIM, PART_0, PART_1, PART_2)
    b_lse = backward.log2_sums(p_lse + statistics, o_m, m_query)  # [BLOCK_M]
    b_delta = tl.load(p_delta + statistics + o_m, mask=m_query, other=0.0)  # [BLOCK_M]
    return backward.add_key_gradients(
        b_grad_key, b_grad_value, b_key, b_value, b_query, b_grad_out, b_lse, b_delta,
        lists, numbers, plan, i_tile, place, start, first_key, o_query, o_key, rows_k, scale_log2, PRECISION, APART,
        MASK, BRANCH,
    )  # fmt: skip


@triton.jit
def key_gradients(
    p_query,
    p_key,
    p_value,
    p_grad_out,
    p_lse,
    p_delta,
    p_grad_key,
    p_grad_value,
    p_cos_q,
    p_sin_q,
    p_cos_k,
    p_sin_k,
    strides_query,
    strides_key,
    strides_value,
    strides_grad,
    lists,
    numbers,
    i_sample,
    i_head_k,
    first_key,
    heads_q,
    group,
    length_q,
    sample_q,
    sample_k,
    first_q,
    rows_q,
    first_k,
    rows_k,
    scale,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    PART_0: tl.constexpr,
    PART_1: tl.constexpr,
    PART_2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    APART: tl.constexpr,
    MASK: tl.constexpr,
    BRANCH: tl.constexpr,
    ROPE: tl.constexpr,
):
    """dK and dV of a key tile, summed over the heads of its group."""
    i_row = first_k + first_key
    o_n = tl.arange(0, BLOCK_N)
    o_key = first_key + o_n
    m_key = o_key < rows_k
    p_k = tiles.rows(p_key, i_sample, i_row, i_head_k, strides_key)
    p_v = tiles.rows(p_value, i_sample, i_row, i_head_k, strides_value)
    b_key = tiles.load(p_k, o_n, m_key, strides_key[1], HEAD_DIM, PART_0, PART_1, PART_2)
    b_key = rotary.rotated(b_key, p_cos_k, p_sin_k, o_key, m_key, HEAD_DIM, False, ROPE)
    b_value = tiles.load(p_v, o_n, m_key, strides_value[1], HEAD_DIM, PART_0, PART_1, PART_2)
    b_grad_key = tiles.zeros(BLOCK_N, PART_0, PART_1, PART_2)  # [BLOCK_N, HEAD_DIM]
    b_grad_value = tiles.zeros(BLOCK_N, PART_0, PART_1, PART_2)  # [BLOCK_N, HEAD_DIM]
    if MASK == mask.PREFIX:
        # The same tiles for every head of the group: one loop, which saves registers, and counts instead of dividing.
        plan = mask.query_plan(
            lists, numbers, i_sample, i_head_k, first_key, rows_q, rows_k, BLOCK_M, BLOCK_N, MASK
        )
        i_tile, i_head = plan[0], i_head_k * group
        for _ in range(group * (plan[1] - plan[0])):
            b_grad_key, b_grad_value = key_gradient_step(
                b_grad_key, b_grad_value, b_key, b_value, p_query, p_grad_out, p_lse, p_delta, p_cos_q, p_sin_q,
                strides_query, strides_grad, lists, numbers, plan, i_tile, i_sample,
                i_head, heads_q, length_q, sample_q, first_q, rows_q, rows_k, first_key,
                o_key, scale_log2, HEAD_DIM, PART_0, PART_1, PART_2, BLOCK_M, PRECISION, APART, MASK, BRANCH, ROPE,
            )  # fmt: skip
            is_last = i_tile == plan[1] - 1
            i_tile = tl.where(is_last, plan[0], i_tile + 1)
            i_head += is_last.to(tl.int32)
    else:
        for i_head in range(i_head_k * group, i_head_k * group + group):
            plan = mask.query_plan(
                lists, numbers, i_sample, i_head, first_key, rows_q, rows_k, BLOCK_M, BLOCK_N, MASK
            )
            for i_tile in range(plan[0], plan[1]):
                b_grad_key, b_grad_value = key_gradient_step(
                    b_grad_key, b_grad_value, b_key, b_value, p_query, p_grad_out, p_lse, p_delta, p_cos_q, p_sin_q,
                    strides_query, strides_grad, lists, numbers, plan, i_tile, i_sample,
                    i_head, heads_q, length_q, sample_q, first_q, rows_q, rows_k, first_key, o_key,
                    scale_log2, HEAD_DIM, PART_0, PART_1, PART_2, BLOCK_M, PRECISION, APART, MASK, BRANCH, ROPE,
                )  # fmt: skip
    heads_k = heads_q // group
    stride_out = heads_k * (HEAD_DIM // tiles.OCTET)
    b_grad_key = tiles.scaled(b_grad_key, scale)
    b_grad_key = rotary.rotated(b_grad_key, p_cos_k, p_sin_k, o_key, m_key, HEAD_DIM, True, ROPE)
    p_gk = tiles.contiguous_rows(p_grad_key, i_sample, i_row, i_head_k, heads_k, sample_k, HEAD_DIM)
    tiles.store(p_gk, o_n, m_key, stride_out, b_grad_key, HEAD_DIM)
    p_gv = tiles.contiguous_rows(p_grad_value, i_sample, i_row, i_head_k, heads_k, sample_k, HEAD_DIM)
    tiles.store(p_gv, o_n, m_key, stride_out, b_grad_value, HEAD_DIM)
