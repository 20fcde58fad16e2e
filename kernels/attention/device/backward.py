"""One tile's share of the gradients, without atomics, so that a sum is the same every time.

With p = softmax(scale q k^T) recomputed from the saved log-sum-exp, dO the gradient of the output and
delta_i = sum_d O_id dO_id (Dao, arXiv 2307.08691, algorithm 2):

    dV = p^T dO        dS = p * (dO V^T - delta)        dQ = scale dS K        dK = scale dS^T Q

Keys' gradients are formed by programs that own keys, from logits computed transposed: p^T and dS^T then come out of the
tensor cores as they go in, and no register tile is ever transposed. Queries' gradients are formed by programs that own
queries.
"""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

from . import mask, tiles

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def log2_sums(p_lse, o_m, m_row):
    """log2-sum-exp of rows.

    Neither rows past the end nor rows that saw nothing need care: the first have zeros for query and gradient, the
    second meet no tile but such as ask the mask about every pair.
    """
    return tl.load(p_lse + o_m, mask=m_row, other=0.0) * LOG2_E


@triton.jit
def add_query_gradient(
    b_grad_query,
    b_query,
    b_grad_out,
    b_lse,
    b_delta,
    b_key,
    b_value,
    lists,
    numbers,
    plan,
    i_tile,
    place,
    first_query,
    first_key,
    o_query,
    o_key,
    rows_k,
    scale_log2,
    PRECISION: tl.constexpr,
    APART: tl.constexpr,
    MASK: tl.constexpr,
    BRANCH: tl.constexpr,
):
    """dQ / scale of a query tile plus what a key tile adds."""
    b_logits = tiles.over_channels(b_query, b_key, PRECISION, APART)  # [BLOCK_M, BLOCK_N]
    b_weights = tl.exp2(b_logits * scale_log2 - b_lse[:, None])  # [BLOCK_M, BLOCK_N]
    b_weights = mask.applied(
        b_weights,
        0.0,
        lists,
        numbers,
        plan,
        i_tile,
        place,
        first_query,
        first_key,
        o_query,
        o_key,
        rows_k,
        MASK,
        False,
        BRANCH,
    )
    b_grad_weights = tiles.over_channels(b_grad_out, b_value, PRECISION, APART)  # [BLOCK_M, BLOCK_N]
    b_grad_logits = b_weights * (b_grad_weights - b_delta[:, None])  # [BLOCK_M, BLOCK_N]
    return tiles.add_product(b_grad_query, b_grad_logits, b_key, PRECISION)


@triton.jit
def add_key_gradients(
    b_grad_key,
    b_grad_value,
    b_key,
    b_value,
    b_query,
    b_grad_out,
    b_lse,
    b_delta,
    lists,
    numbers,
    plan,
    i_tile,
    place,
    first_query,
    first_key,
    o_query,
    o_key,
    rows_k,
    scale_log2,
    PRECISION: tl.constexpr,
    APART: tl.constexpr,
    MASK: tl.constexpr,
    BRANCH: tl.constexpr,
):
    """(dK / scale, dV) of a key tile plus what a query tile adds."""
    b_logits = tiles.over_channels(b_key, b_query, PRECISION, APART)  # [BLOCK_N, BLOCK_M]
    b_weights = tl.exp2(b_logits * scale_log2 - b_lse[None, :])  # [BLOCK_N, BLOCK_M]
    b_weights = mask.applied(
        b_weights,
        0.0,
        lists,
        numbers,
        plan,
        i_tile,
        place,
        first_query,
        first_key,
        o_query,
        o_key,
        rows_k,
        MASK,
        True,
        BRANCH,
    )
    b_grad_value = tiles.add_product(b_grad_value, b_weights, b_grad_out, PRECISION)  # [BLOCK_N, HEAD_DIM]
    b_grad_weights = tiles.over_channels(b_value, b_grad_out, PRECISION, APART)  # [BLOCK_N, BLOCK_M]
    b_grad_logits = b_weights * (b_grad_weights - b_delta[None, :])  # [BLOCK_N, BLOCK_M]
    b_grad_key = tiles.add_product(b_grad_key, b_grad_logits, b_query, PRECISION)  # [BLOCK_N, HEAD_DIM]
    return b_grad_key, b_grad_value
