"""The backward of a short sequence in one program and one launch.

A program owns a head of keys and the queries that read it. It walks over the keys for every query tile, forms delta on
the way, then over the queries for every key tile. The tensors come from memory once, for the second walk from the
cache; there is neither a launch before for delta nor a float32 gradient in between.
"""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

from . import mask, walks
from .runtime import RUNTIME


@triton.jit(do_not_specialize=RUNTIME)
def attention_whole_gradient_kernel(
    p_query,
    p_key,
    p_value,
    p_grad_out,
    p_lse,
    p_out,
    p_delta,
    p_grad_query,
    p_grad_key,
    p_grad_value,
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
    stride_grad_sample,
    stride_grad_token,
    stride_grad_head,
    heads_q,
    group,
    length_q,
    length_k,
    sample_q,
    sample_k,
    rope_sample_q,
    rope_sample_k,
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
    OWN_M: tl.constexpr,
    OWN_N: tl.constexpr,
    ROPE: tl.constexpr,
):
    lists = (p_mask_0, p_mask_1, p_mask_2, p_mask_3, p_mask_4, p_mask_5)
    numbers = (mask_0, mask_1, mask_2, mask_3)
    strides_query = (stride_query_sample, stride_query_token, stride_query_head)
    strides_key = (stride_key_sample, stride_key_token, stride_key_head)
    strides_value = (stride_value_sample, stride_value_token, stride_value_head)
    strides_grad = (stride_grad_sample, stride_grad_token, stride_grad_head)
    i_program = tl.program_id(0)
    i_head_k = i_program % (heads_q // group)
    i_sample = i_program // (heads_q // group)
    first_q, rows_q, first_k, rows_k, numbers = mask.sequences(
        lists, numbers, i_sample, length_q, length_k, MASK
    )
    turn_q = (i_sample.to(tl.int64) * rope_sample_q + first_q) * HEAD_DIM
    turn_k = (i_sample.to(tl.int64) * rope_sample_k + first_k) * HEAD_DIM
    p_cos_q += turn_q
    p_sin_q += turn_q
    p_cos_k += turn_k
    p_sin_k += turn_k
    tiles_q = tl.cdiv(rows_q, OWN_M)
    for i_step in range(group * tiles_q):
        walks.query_gradients(
            p_query, p_key, p_value, p_grad_out, p_out, p_lse, p_delta, p_grad_query, p_cos_q, p_sin_q, p_cos_k,
            p_sin_k, strides_query, strides_key, strides_value, strides_grad, lists, numbers, i_sample,
            i_head_k * group + i_step // tiles_q, i_step % tiles_q * OWN_M, heads_q, group, length_q, sample_q,
            first_q, rows_q, first_k, rows_k, scale, scale_log2, HEAD_DIM,
            PART_0, PART_1, PART_2, OWN_M, BLOCK_N, PRECISION, APART, MASK, BRANCH, ROPE, True,
        )  # fmt: skip
    # The second walk reads what other threads of this program wrote of delta.
    tl.debug_barrier()
    for first_key in range(0, rows_k, OWN_N):
        walks.key_gradients(
            p_query, p_key, p_value, p_grad_out, p_lse, p_delta, p_grad_key, p_grad_value, p_cos_q, p_sin_q, p_cos_k,
            p_sin_k, strides_query, strides_key, strides_value, strides_grad, lists, numbers, i_sample, i_head_k,
            first_key, heads_q, group, length_q, sample_q, sample_k, first_q, rows_q, first_k, rows_k, scale,
            scale_log2, HEAD_DIM, PART_0, PART_1, PART_2, BLOCK_M, OWN_N, PRECISION, APART, MASK, BRANCH, ROPE,
        )  # fmt: skip
