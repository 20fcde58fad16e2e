"""Attention forward: one program per tile of queries of a head, online softmax over the key tiles it sees.

Rabe and Staats (arXiv 2112.05682), Dao (arXiv 2307.08691). The logits stay in units of the dot product; their scale
and log2(e) enter as one multiply-add before exp2.
"""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

from . import mask, rotary, tiles
from .runtime import RUNTIME

LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def softmax_step(
    b_query,
    b_max,
    b_sum,
    b_acc,
    p_key,
    p_value,
    stride_key,
    stride_value,
    p_cos,
    p_sin,
    lists,
    numbers,
    plan,
    i_tile,
    first_query,
    o_query,
    rows_k,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    PART_0: tl.constexpr,
    PART_1: tl.constexpr,
    PART_2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    APART: tl.constexpr,
    MASK: tl.constexpr,
    ROPE: tl.constexpr,
    BRANCH: tl.constexpr,
):
    """One key tile of the plan."""
    start, place = mask.tile(lists, plan, i_tile, numbers[1], BLOCK_N, MASK)
    o_n = tl.arange(0, BLOCK_N)
    o_key = start + o_n
    m_n = o_key < rows_k
    p_k = p_key + start * (stride_key.to(tl.int64) * tiles.OCTET)
    p_v = p_value + start * (stride_value.to(tl.int64) * tiles.OCTET)
    b_key = tiles.load(p_k, o_n, m_n, stride_key, HEAD_DIM, PART_0, PART_1, PART_2)  # [BLOCK_N, HEAD_DIM]
    b_key = rotary.rotated(b_key, p_cos, p_sin, o_key, m_n, HEAD_DIM, False, ROPE)
    b_logits = tiles.over_channels(b_query, b_key, PRECISION, APART)  # [BLOCK_M, BLOCK_N]
    b_logits = mask.applied(
        b_logits,
        float("-inf"),
        lists,
        numbers,
        plan,
        i_tile,
        place,
        first_query,
        start,
        o_query,
        o_key,
        rows_k,
        MASK,
        False,
        BRANCH,
    )
    b_new_max = tl.maximum(b_max, tl.max(b_logits, axis=1))  # [BLOCK_M]
    # Rows that have seen nothing yet have no maximum to subtract.
    b_shift = tl.where(b_new_max == float("-inf"), 0.0, b_new_max * scale_log2)  # [BLOCK_M]
    b_weights = tl.exp2(b_logits * scale_log2 - b_shift[:, None])  # [BLOCK_M, BLOCK_N]
    b_decay = tl.exp2(b_max * scale_log2 - b_shift)  # [BLOCK_M]
    b_sum = b_sum * b_decay + tl.sum(b_weights, axis=1)  # [BLOCK_M]
    b_acc = tiles.scaled(b_acc, b_decay[:, None])  # [BLOCK_M, HEAD_DIM]
    b_value = tiles.load(p_v, o_n, m_n, stride_value, HEAD_DIM, PART_0, PART_1, PART_2)  # [BLOCK_N, HEAD_DIM]
    b_acc = tiles.add_product(b_acc, b_weights, b_value, PRECISION)  # [BLOCK_M, HEAD_DIM]
    return b_new_max, b_sum, b_acc


@triton.jit(do_not_specialize=RUNTIME)
def attention_forward_kernel(
    p_query,
    p_key,
    p_value,
    p_out,
    p_lse,
    p_cos_q,
    p_sin_q,
    p_cos_k,
    p_sin_k,
    p_mask_0,
    p_mask_1,
    p_mask_2,
    p_mask_3,
    p_mask_4,
    p_mask_5,
    stride_query_sample,
    stride_query_token,
    stride_query_head,
    stride_key_sample,
    stride_key_token,
    stride_key_head,
    stride_value_sample,
    stride_value_token,
    stride_value_head,
    heads_q,
    group,
    length_q,
    length_k,
    sample_q,
    rope_sample_q,
    rope_sample_k,
    tiles_own,
    mask_0,
    mask_1,
    mask_2,
    mask_3,
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
    ROPE: tl.constexpr,
    BRANCH: tl.constexpr,
):
    lists = (p_mask_0, p_mask_1, p_mask_2, p_mask_3, p_mask_4, p_mask_5)
    numbers = (mask_0, mask_1, mask_2, mask_3)
    i_program = tl.program_id(0)
    # The last tiles of a causal mask see the most keys; they start first.
    first_query = (tiles_own - 1 - i_program % tiles_own) * BLOCK_M
    i_head = i_program // tiles_own % heads_q
    i_sample = i_program // tiles_own // heads_q
    i_head_k = i_head // group
    first_q, rows_q, first_k, rows_k, numbers = mask.sequences(
        lists, numbers, i_sample, length_q, length_k, MASK
    )
    if first_query >= rows_q:
        return
    o_m = tl.arange(0, BLOCK_M)
    o_query = first_query + o_m
    m_query = o_query < rows_q
    strides_key = (stride_key_sample, stride_key_token, stride_key_head)
    strides_value = (stride_value_sample, stride_value_token, stride_value_head)
    p_q = tiles.rows(
        p_query,
        i_sample,
        first_q + first_query,
        i_head,
        (stride_query_sample, stride_query_token, stride_query_head),
    )
    p_k = tiles.rows(p_key, i_sample, first_k, i_head_k, strides_key)
    p_v = tiles.rows(p_value, i_sample, first_k, i_head_k, strides_value)
    turn_q = (i_sample.to(tl.int64) * rope_sample_q + first_q) * HEAD_DIM
    turn_k = (i_sample.to(tl.int64) * rope_sample_k + first_k) * HEAD_DIM
    p_cos_k += turn_k
    p_sin_k += turn_k
    b_query = tiles.load(p_q, o_m, m_query, stride_query_token, HEAD_DIM, PART_0, PART_1, PART_2)
    b_query = rotary.rotated(
        b_query, p_cos_q + turn_q, p_sin_q + turn_q, o_query, m_query, HEAD_DIM, False, ROPE
    )
    b_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    b_acc = tiles.zeros(BLOCK_M, PART_0, PART_1, PART_2)  # [BLOCK_M, HEAD_DIM]
    plan = mask.key_plan(
        lists, numbers, i_sample, i_head, first_query, rows_q, rows_k, BLOCK_M, BLOCK_N, MASK
    )
    for i_key in range(plan[0], plan[1]):
        b_max, b_sum, b_acc = softmax_step(
            b_query, b_max, b_sum, b_acc, p_k, p_v, stride_key_token, stride_value_token, p_cos_k, p_sin_k,
            lists, numbers, plan, i_key, first_query, o_query, rows_k, scale_log2,
            HEAD_DIM, PART_0, PART_1, PART_2, BLOCK_N, PRECISION, APART, MASK, ROPE, BRANCH,
        )  # fmt: skip
    # A row that saw nothing has the sum 0 and the maximum -inf: its output is 0 and its log-sum-exp is -inf.
    b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)  # [BLOCK_M]
    b_lse = (b_max * scale_log2 + tl.log2(b_sum)) * LN_2  # [BLOCK_M]
    p_l = p_lse + tiles.statistics_row(i_sample, first_q + first_query, i_head, heads_q, sample_q, length_q)
    tl.store(p_l + o_m, b_lse, mask=m_query)
    p_o = tiles.contiguous_rows(p_out, i_sample, first_q + first_query, i_head, heads_q, sample_q, HEAD_DIM)
    tiles.store(
        p_o,
        o_m,
        m_query,
        heads_q * (HEAD_DIM // tiles.OCTET),
        tiles.scaled(b_acc, 1.0 / b_sum[:, None]),
        HEAD_DIM,
    )
