"""The one place that knows which kind of mask a kernel is compiled for.

A plan is what one program walks over: tiles `begin` to `end` of a list or of the sequence. Of those from
`masked_begin` to `masked_end` every pair has to be looked at; the others are seen whole.

    plan = (begin, end, masked_begin, masked_end, first_full, first_partial, full)

The last three are the bit mask's own. `lists` are six int32 pointers, `numbers` four integers:

    PREFIX   lists:   cu_seqlens_q, cu_seqlens_k
             numbers: packed, step, offset, whether the last query is to see the last key
    BITMASK  lists:   offsets and blocks of the full list, offsets and blocks of the partial list, places, bits
             numbers: block_q, block_k, planes from a sample to the next, planes from a head to the next
"""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

from . import bitmask, prefix

PREFIX: tl.constexpr = tl.constexpr(0)
BITMASK: tl.constexpr = tl.constexpr(1)


@triton.jit
def sequences(lists, numbers, i_sample, length_q, length_k, MASK: tl.constexpr):
    """(first packed query, queries, first packed key, keys, numbers) of a sample."""
    if MASK == PREFIX:
        first_q, rows_q = prefix.segment(lists[0], i_sample, length_q, numbers[0])
        first_k, rows_k = prefix.segment(lists[1], i_sample, length_k, numbers[0])
        offset = numbers[2] + numbers[3] * (rows_k - rows_q)
        return first_q, rows_q, first_k, rows_k, (numbers[0], numbers[1], offset, numbers[3])
    else:
        return 0, length_q, 0, length_k, numbers


@triton.jit
def _bitmask_plan(lists, i_row, length, block, TILE: tl.constexpr, MASK_RAGGED: tl.constexpr):
    first_full = tl.load(lists[0] + i_row)
    end_full = tl.load(lists[0] + i_row + 1)
    first_partial = tl.load(lists[2] + i_row)
    end_partial = tl.load(lists[2] + i_row + 1)
    tiles = block // TILE
    full = (end_full - first_full) * tiles
    partial = (end_partial - first_partial) * tiles
    ragged = 0
    if MASK_RAGGED:  # lists ascend, so that only the last full block can reach past the end
        last = tl.load(lists[1] + end_full - 1, mask=end_full > first_full, other=-1)
        ragged = tl.where((last + 1) * block > length, tiles, 0)
    return 0, full + partial, full - ragged, full + partial, first_full, first_partial, full


@triton.jit
def key_plan(
    lists,
    numbers,
    i_sample,
    i_head,
    first_query,
    rows_q,
    rows_k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK: tl.constexpr,
):
    """The key tiles of the BLOCK_M queries from `first_query` on."""
    if MASK == PREFIX:
        full, some = prefix.key_blocks(first_query, rows_k, numbers[1], numbers[2], BLOCK_M, BLOCK_N)
        return 0, some, full, some, 0, 0, 0
    else:
        i_plane = i_sample * numbers[2] + i_head * numbers[3]
        i_row = i_plane * tl.cdiv(rows_q, numbers[0]) + first_query // numbers[0]
        # Keys past the end would weigh as much as a logit of zero: a full block that reaches there is masked.
        return _bitmask_plan(lists, i_row, rows_k, numbers[1], BLOCK_N, True)


@triton.jit
def query_plan(
    lists,
    numbers,
    i_sample,
    i_head,
    first_key,
    rows_q,
    rows_k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK: tl.constexpr,
):
    """The query tiles of the BLOCK_N keys from `first_key` on. Queries past the end have weight zero by themselves."""
    if MASK == PREFIX:
        some, full, end = prefix.query_blocks(
            first_key, rows_q, rows_k, numbers[1], numbers[2], BLOCK_M, BLOCK_N
        )
        return some, end, some, full, 0, 0, 0
    else:
        i_plane = i_sample * numbers[2] + i_head * numbers[3]
        i_row = i_plane * tl.cdiv(rows_k, numbers[1]) + first_key // numbers[1]
        return _bitmask_plan(lists, i_row, rows_q, numbers[0], BLOCK_M, False)


@triton.jit
def tile(lists, plan, i_tile, block, TILE: tl.constexpr, MASK: tl.constexpr):
    """(first token, place of the block in the partial list or -1); block: of the mask, in the walk's direction."""
    if MASK == PREFIX:
        return i_tile * TILE, 0
    else:
        is_full = i_tile < plan[6]
        tiles = block // TILE
        position = tl.where(is_full, i_tile, i_tile - plan[6])
        place = tl.where(is_full, plan[4], plan[5]) + position // tiles
        i_block = tl.load(lists[1] + place, mask=is_full, other=0) + tl.load(
            lists[3] + place, mask=is_full == 0, other=0
        )
        return i_block * block + position % tiles * TILE, tl.where(is_full, -1, place)


@triton.jit
def kept(
    lists,
    numbers,
    place,
    first_query,
    first_key,
    o_query,
    o_key,
    rows_k,
    MASK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Whether queries see keys: [BLOCK_M, BLOCK_N], or [BLOCK_N, BLOCK_M] if TRANSPOSED."""
    if MASK == PREFIX:
        # Of the two bounds the one by what a program owns: it is formed once, not for every tile.
        if TRANSPOSED:
            o_first = prefix.seers(o_key, numbers[1], numbers[2])  # [BLOCK_N]
            return o_query[None, :] >= o_first[:, None]
        else:
            o_end = prefix.seen(o_query, rows_k, numbers[1], numbers[2])  # [BLOCK_M]
            return o_key[None, :] < o_end[:, None]
    else:
        # Where the block is full there is no bit mask to look at, but keys past the end are still not there.
        i_block = place
        if TRANSPOSED:
            i_block = tl.load(lists[4] + place, mask=place >= 0, other=0)
        m_kept = bitmask.kept(
            lists[5], i_block, place >= 0, first_query % numbers[0], first_key % numbers[1], numbers[0], numbers[1],
            o_query.shape[0], o_key.shape[0], TRANSPOSED,
        )  # fmt: skip
        m_inside = o_key < rows_k  # [BLOCK_N]
        return m_kept & (m_inside[:, None] if TRANSPOSED else m_inside[None, :])


@triton.jit
def applied(
    b_tile,
    instead,
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
    MASK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BRANCH: tl.constexpr,
):
    """The tile with `instead` where a query does not see a key.

    BRANCH: jump over the question where the tile is seen whole. Without the jump the compiler sees that one product
    feeds the next, by which it lays out the warps of sm_80 and sm_120; the other architectures do not need to know.
    """
    if BRANCH:
        if (i_tile >= plan[2]) & (i_tile < plan[3]):
            m_kept = kept(
                lists, numbers, place, first_query, first_key, o_query, o_key, rows_k, MASK, TRANSPOSED
            )
            b_tile = tl.where(m_kept, b_tile, instead)
    else:
        m_kept = kept(lists, numbers, place, first_query, first_key, o_query, o_key, rows_k, MASK, TRANSPOSED)
        b_tile = tl.where(m_kept, b_tile, instead)
    return b_tile
