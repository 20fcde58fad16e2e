"""Masks under which a query sees its sequence's first keys: no mask at all, packed sequences, causal over steps.

Query i sees key j where j // step <= (i + offset) // step. Without causality one step is longer than any sequence.
An offset below 0, of more queries than keys, comes with steps of one token: the first queries then see nothing.
"""

# mypy: allow-untyped-defs
import triton
import triton.language as tl


@triton.jit
def segment(p_offsets, i_sample, length, packed):
    """(first packed row, rows) of a sample's sequence; without packing every sample has `length` rows from 0 on."""
    first = 0
    rows = length
    if packed != 0:
        first = tl.load(p_offsets + i_sample)
        rows = tl.load(p_offsets + i_sample + 1) - first
    return first, rows


@triton.jit
def seen(o_query, length_k, step, offset):
    """How many keys, from the first on, a query sees."""
    return tl.minimum((o_query + offset) // step * step + step, length_k)


@triton.jit
def seers(o_key, step, offset):
    """The first query that sees a key."""
    return o_key // step * step - offset


@triton.jit
def key_blocks(first_query, length_k, step, offset, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(blocks that every query of the tile sees, blocks that some query sees), both counted from the first key."""
    full = seen(first_query, length_k, step, offset) // BLOCK_N
    some = tl.cdiv(seen(first_query + BLOCK_M - 1, length_k, step, offset), BLOCK_N)
    return full, some


@triton.jit
def query_blocks(first_key, length_q, length_k, step, offset, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(first block that sees some key of the tile, first block that sees all, end), counted from the first query."""
    last_key = tl.minimum(first_key + BLOCK_N, length_k) - 1
    some = tl.maximum(first_key // step * step - offset, 0) // BLOCK_M
    full = tl.cdiv(tl.maximum(last_key // step * step - offset, 0), BLOCK_M)
    end = tl.cdiv(length_q, BLOCK_M)
    return tl.minimum(some, end), tl.minimum(full, end), end
