"""Any mask, as blocks that are full, partial or empty."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import device_error

WORD_BITS = 32


@dataclass(frozen=True, eq=False)
class BlockSparse:
    """Any boolean mask, cut into blocks of `block_size = (block_q, block_k)` tokens. Use `from_dense`.

    A mask has `planes = mask_batch * mask_heads` planes, each of `blocks_q x blocks_k` blocks; a size of 1 is shared by
    all samples or heads. A block is empty (in no list), full (every pair of it that lies inside the mask is seen) or
    partial (it has a bit mask). A block that reaches past the mask's end is full if it is full inside; kernels mask
    what lies past the end anyway. Every list is in compressed sparse row form, all int32:

    row r = plane * blocks_q + query block
        full_keys[full_offsets[r] : full_offsets[r + 1]]             the full key blocks, ascending
        partial_keys[partial_offsets[r] : partial_offsets[r + 1]]    the partial key blocks, ascending
        partial_bits[p]  [block_q, block_k / 32]                     of the block at place p of partial_keys
    row r = plane * blocks_k + key block, for the backward
        full_queries[full_queries_offsets[r] : ...]                  the full query blocks, ascending
        partial_queries[partial_queries_offsets[r] : ...]            the partial query blocks, ascending
        partial_queries_place[same range]                            their places in partial_keys, so in partial_bits

    Bit j % 32 of word j / 32 of row i of a bit mask says whether query i of the block sees its key j; bits past the end
    of the mask are 0. Lists made on a CUDA device are as long as they could ever be, so that nothing is
    synchronised; only what the offsets span is meaningful.
    """

    query_length: int
    key_length: int
    block_size: tuple[int, int]
    mask_batch: int
    mask_heads: int
    full_offsets: Tensor
    full_keys: Tensor
    partial_offsets: Tensor
    partial_keys: Tensor
    partial_bits: Tensor
    full_queries_offsets: Tensor
    full_queries: Tensor
    partial_queries_offsets: Tensor
    partial_queries: Tensor
    partial_queries_place: Tensor

    kind: ClassVar[str] = "block_sparse"
    packed: ClassVar[bool] = False

    @classmethod
    def from_dense(cls, mask: Tensor, block_size: tuple[int, int] = (128, 128)) -> "BlockSparse":
        """mask: bool `[Nq, Nk]`, `[H or 1, Nq, Nk]` or `[B or 1, H or 1, Nq, Nk]`, True where a query sees a key.
        block_size: queries and keys of a block, multiples of 16 and of 32.

        Runs on the mask's device without a synchronisation.

        Raises TypeError for another dtype, ValueError for another rank or block size.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask: expected a tensor of bool, got {got}")
        if not 2 <= mask.ndim <= 4:
            raise ValueError(
                f"mask: expected [Nq, Nk] with up to two dimensions before, got {list(mask.shape)}"
            )
        if not isinstance(block_size, (tuple, list)) or [type(size) for size in block_size] != [int, int]:
            raise TypeError(f"block_size: expected two ints (queries, keys), got {block_size!r}")
        block_q, block_k = block_size
        if block_q < 16 or block_q % 16 or block_k < WORD_BITS or block_k % WORD_BITS:
            raise ValueError(
                f"block_size: expected multiples of (16, {WORD_BITS}), got ({block_q}, {block_k})"
            )
        mask = mask[(None,) * (4 - mask.ndim)]
        batch, heads, length_q, length_k = mask.shape
        blocks = _blocks(
            mask.flatten(0, 1), block_q, block_k
        )  # [planes, blocks_q, blocks_k, block_q, block_k]
        inside = _blocks(mask.new_ones(1, length_q, length_k), block_q, block_k)
        seen = blocks.flatten(3).sum(3)
        full = (seen == inside.flatten(3).sum(3)) & (seen > 0)  # [planes, blocks_q, blocks_k]
        partial = (seen > 0) & ~full
        order = _first(partial)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=mask.device)
        by_key = partial.transpose(1, 2)
        place_by_key = place.view(partial.shape).transpose(1, 2).flatten()
        partial_order_by_key = _first(by_key)
        return cls(
            length_q,
            length_k,
            (block_q, block_k),
            batch,
            heads,
            _offsets(full),
            _columns(full),
            _offsets(partial),
            _columns(partial),
            _pack(blocks.flatten(0, 2)[_trimmed(order, partial)]),
            _offsets(full.transpose(1, 2)),
            _columns(full.transpose(1, 2)),
            _offsets(by_key),
            _columns(by_key),
            _trimmed(place_by_key[partial_order_by_key], partial).to(torch.int32),
        )

    @property
    def planes(self) -> int:
        return self.mask_batch * self.mask_heads

    @property
    def blocks(self) -> tuple[int, int]:
        """How many blocks of queries and of keys."""
        block_q, block_k = self.block_size
        return -(-self.query_length // block_q), -(-self.key_length // block_k)

    def tensors(self) -> list[Tensor]:
        return [
            self.full_offsets,
            self.full_keys,
            self.partial_offsets,
            self.partial_keys,
            self.partial_bits,
            self.full_queries_offsets,
            self.full_queries,
            self.partial_queries_offsets,
            self.partial_queries,
            self.partial_queries_place,
        ]

    def integers(self) -> list[int]:
        return [self.query_length, self.key_length, *self.block_size, self.mask_batch, self.mask_heads]

    @classmethod
    def rebuild(cls, tensors: Sequence[Tensor], integers: Sequence[int]) -> "BlockSparse":
        length_q, length_k, block_q, block_k, batch, heads = integers
        return cls(length_q, length_k, (block_q, block_k), batch, heads, *tensors)

    def check(self, query: Tensor, key: Tensor) -> None:
        if (query.shape[1], key.shape[1]) != (self.query_length, self.key_length):
            raise ValueError(
                f"mask: expected {query.shape[1]} queries and {key.shape[1]} keys, "
                f"got a mask of {self.query_length} and {self.key_length}"
            )
        if self.mask_batch not in (1, query.shape[0]) or self.mask_heads not in (1, query.shape[2]):
            raise ValueError(
                f"mask: expected leading dimensions that broadcast to [{query.shape[0]}, {query.shape[2]}], "
                f"got [{self.mask_batch}, {self.mask_heads}]"
            )
        if self.full_offsets.device != query.device:
            raise device_error("mask", self.full_offsets, query)

    def dense(self, query_length: int, key_length: int, device: torch.device) -> Tensor:
        """[mask_batch, mask_heads, query_length, key_length], read back from the blocks. Synchronises on CUDA."""
        block_q, block_k = self.block_size
        blocks_q, blocks_k = self.blocks
        shape = (self.planes, blocks_q, blocks_k, block_q, block_k)
        blocks = torch.zeros(shape, dtype=torch.bool, device=device).flatten(0, 1)
        blocks[*_pairs(self.full_offsets, self.full_keys)] = True
        row, column = _pairs(self.partial_offsets, self.partial_keys)
        blocks[row, column] = _unpack(self.partial_bits[: len(row)], block_k)
        planes = (
            blocks.view(shape).transpose(2, 3).reshape(self.planes, blocks_q * block_q, blocks_k * block_k)
        )
        planes = planes[:, :query_length, :key_length]
        return planes.unflatten(0, (self.mask_batch, self.mask_heads))


def _blocks(mask: Tensor, block_q: int, block_k: int) -> Tensor:
    """`[planes, Nq, Nk]` -> `[planes, blocks_q, blocks_k, block_q, block_k]`, filled up with False."""
    mask = F.pad(mask, (0, -mask.shape[2] % block_k, 0, -mask.shape[1] % block_q))
    return mask.unflatten(2, (-1, block_k)).unflatten(1, (-1, block_q)).transpose(2, 3)


def _offsets(marked: Tensor) -> Tensor:
    """int32 [rows + 1] of the row-wise lists of what is marked in `[planes, rows_per_plane, columns]`."""
    return F.pad(marked.sum(2).flatten().cumsum(0), (1, 0)).to(torch.int32)


def _first(marked: Tensor) -> Tensor:
    """Flat places in order, those marked before all others."""
    return marked.flatten().logical_not().to(torch.uint8).argsort(stable=True)


def _columns(marked: Tensor) -> Tensor:
    """int32, the columns of what is marked, row after row."""
    return _trimmed(_first(marked) % max(marked.shape[2], 1), marked).to(torch.int32)


def _trimmed(listed: Tensor, marked: Tensor) -> Tensor:
    """Without the places that are not marked, where counting them does not stop a stream."""
    return listed[: int(marked.sum())] if marked.device.type == "cpu" else listed


def _pack(bits: Tensor) -> Tensor:
    """bool `[n, block_q, block_k]` -> int32 `[n, block_q, block_k / 32]`."""
    words = bits.unflatten(2, (-1, WORD_BITS)).to(torch.int32)
    return (words << torch.arange(WORD_BITS, dtype=torch.int32, device=bits.device)).sum(3, dtype=torch.int32)


def _unpack(words: Tensor, block_k: int) -> Tensor:
    bits = words[..., None] >> torch.arange(WORD_BITS, dtype=torch.int32, device=words.device)
    return (bits & 1).bool().flatten(2)[..., :block_k]


def _pairs(offsets: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) of every entry of a list."""
    counts = offsets.diff().to(torch.int64)
    row = torch.repeat_interleave(torch.arange(len(counts), device=offsets.device), counts)
    return row, columns[: len(row)].to(torch.int64)
