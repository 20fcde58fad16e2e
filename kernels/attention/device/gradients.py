"""The kernels of the backward for sequences of any length: delta, then queries' and keys' gradients."""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

from . import mask, tiles, walks
from .runtime import RUNTIME


@triton.jit(do_not_specialize=RUNTIME)
def attention_delta_kernel(
    p_out,  # [B, N, H, D], contiguous
    p_grad_out,
    p_delta,  # float32 [B, H, N]
    stride_grad_sample,
    stride_grad_token,
    stride_grad_head,
    heads_q,
    length_q,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """delta = sum over channels of out * grad_out. A packed tensor is one sample here."""
    tiles_q = tl.cdiv(length_q, BLOCK_M)
    i_program = tl.program_id(0)
    i_row = i_program % tiles_q * BLOCK_M
    i_head = i_program // tiles_q % heads_q
    i_sample = i_program // tiles_q // heads_q
    o_m = tl.arange(0, BLOCK_M)
    m_row = i_row + o_m < length_q
    p_o = tiles.contiguous_rows(p_out, i_sample, i_row, i_head, heads_q, length_q, HEAD_DIM)
    p_g = tiles.rows(
        p_grad_out, i_sample, i_row, i_head, (stride_grad_sample, stride_grad_token, stride_grad_head)
    )
    b_out = tiles.load(p_o, o_m, m_row, heads_q * (HEAD_DIM // tiles.OCTET), HEAD_DIM, WIDTH, 0, 0)
    b_grad_out = tiles.load(p_g, o_m, m_row, stride_grad_token, HEAD_DIM, WIDTH, 0, 0)  # [BLOCK_M, WIDTH]
    p_d = p_delta + tiles.statistics_row(i_sample, i_row, i_head, heads_q, length_q, length_q)
    tl.store(p_d + o_m, tiles.row_sums(b_out, b_grad_out), mask=m_row)


@triton.jit(do_not_specialize=RUNTIME)
def attention_query_gradient_kernel(
    p_query,
    p_key,
    p_value,
    p_grad_out,
    p_lse,
    p_delta,
    p_grad_query,
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
    stride_grad_sample,
    stride_grad_token,
    stride_grad_head,
    heads_q,
    group,
    length_q,
    length_k,
    sample_q,
    tiles_own,
    mask_0,
    mask_1,
    mask_2,
    mask_3,
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
):
    lists = (p_mask_0, p_mask_1, p_mask_2, p_mask_3, p_mask_4, p_mask_5)
    numbers = (mask_0, mask_1, mask_2, mask_3)
    strides_query = (stride_query_sample, stride_query_token, stride_query_head)
    strides_key = (stride_key_sample, stride_key_token, stride_key_head)
    strides_value = (stride_value_sample, stride_value_token, stride_value_head)
    strides_grad = (stride_grad_sample, stride_grad_token, stride_grad_head)
    i_program = tl.program_id(0)
    # The last tiles of a causal mask see the most keys; they start first.
    first_query = (tiles_own - 1 - i_program % tiles_own) * BLOCK_M
    i_head = i_program // tiles_own % heads_q
    i_sample = i_program // tiles_own // heads_q
    first_q, rows_q, first_k, rows_k, numbers = mask.sequences(
        lists, numbers, i_sample, length_q, length_k, MASK
    )
    if first_query < rows_q:
        walks.query_gradients(
            p_query, p_key, p_value, p_grad_out, None, p_lse, p_delta, p_grad_query, None, None, None, None,
            strides_query, strides_key, strides_value, strides_grad, lists, numbers, i_sample, i_head, first_query,
            heads_q, group, length_q, sample_q, first_q, rows_q, first_k, rows_k, scale, scale_log2, HEAD_DIM,
            PART_0, PART_1, PART_2, BLOCK_M, BLOCK_N, PRECISION, APART, MASK, BRANCH, False, False,
        )  # fmt: skip


@triton.jit(do_not_specialize=RUNTIME)
def attention_key_gradient_kernel(
    p_query,
    p_key,
    p_value,
    p_grad_out,
    p_lse,
    p_delta,
    p_grad_key,
    p_grad_value,
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
    stride_grad_sample,
    stride_grad_token,
    stride_grad_head,
    heads_q,
    group,
    length_q,
    length_k,
    sample_q,
    sample_k,
    tiles_own,
    mask_0,
    mask_1,
    mask_2,
    mask_3,
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
):
    lists = (p_mask_0, p_mask_1, p_mask_2, p_mask_3, p_mask_4, p_mask_5)
    numbers = (mask_0, mask_1, mask_2, mask_3)
    strides_query = (stride_query_sample, stride_query_token, stride_query_head)
    strides_key = (stride_key_sample, stride_key_token, stride_key_head)
    strides_value = (stride_value_sample, stride_value_token, stride_value_head)
    strides_grad = (stride_grad_sample, stride_grad_token, stride_grad_head)
    i_program = tl.program_id(0)
    first_key = i_program % tiles_own * BLOCK_N
    i_head_k = i_program // tiles_own % (heads_q // group)
    i_sample = i_program // tiles_own // (heads_q // group)
    first_q, rows_q, first_k, rows_k, numbers = mask.sequences(
        lists, numbers, i_sample, length_q, length_k, MASK
    )
    if first_key < rows_k:
        walks.key_gradients(
            p_query, p_key, p_value, p_grad_out, p_lse, p_delta, p_grad_key, p_grad_value, None, None, None, None,
            strides_query, strides_key, strides_value, strides_grad, lists, numbers, i_sample, i_head_k, first_key,
            heads_q, group, length_q, sample_q, sample_k, first_q, rows_q, first_k, rows_k, scale, scale_log2,
            HEAD_DIM, PART_0, PART_1, PART_2, BLOCK_M, BLOCK_N, PRECISION, APART, MASK, BRANCH, False,
        )  # fmt: skip
