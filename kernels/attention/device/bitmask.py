"""Any mask, by lists of full and partial blocks and a bit mask for each partial one (masks/block_sparse.py)."""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

WORD: tl.constexpr = tl.constexpr(32)


@triton.jit
def kept(
    p_bits,
    i_block,
    is_partial,
    first_query,
    first_key,
    block_q,
    block_k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Whether queries see keys, in the tile that begins at these offsets inside the block; all do if it is not partial.

    [BLOCK_M, BLOCK_N], or [BLOCK_N, BLOCK_M] if TRANSPOSED.
    """
    WORDS: tl.constexpr = BLOCK_N // WORD
    words = block_k // WORD
    p_tile = p_bits + (i_block.to(tl.int64) * block_q + first_query) * words + first_key // WORD
    o_m = tl.arange(0, BLOCK_M)
    o_word = tl.arange(0, WORDS)
    o_bit = tl.arange(0, WORD)
    # A word is loaded once and spread over its 32 keys.
    if TRANSPOSED:
        p_words = p_tile + o_m[None, :] * words + o_word[:, None]  # [WORDS, BLOCK_M]
        b_words = tl.load(p_words, mask=is_partial, other=-1)  # [WORDS, BLOCK_M]
        b_bits = (b_words[:, None, :] >> o_bit[None, :, None]) & 1  # [WORDS, WORD, BLOCK_M]
        return tl.reshape(b_bits, [BLOCK_N, BLOCK_M]) != 0
    else:
        p_words = p_tile + o_m[:, None] * words + o_word[None, :]  # [BLOCK_M, WORDS]
        b_words = tl.load(p_words, mask=is_partial, other=-1)  # [BLOCK_M, WORDS]
        b_bits = (b_words[:, :, None] >> o_bit[None, None, :]) & 1  # [BLOCK_M, WORDS, WORD]
        return tl.reshape(b_bits, [BLOCK_M, BLOCK_N]) != 0
