"""A call of the attention kernels in the numbers and pointers that they take."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import tiling
from .call import Call
from .masks import BlockCausal, BlockSparse, Mask, Varlen

FAR = 2**30  # tokens: longer than any sequence, and two of them still fit in 32 bits
_MAX_TOKEN_STRIDE = 2**31 // 256  # elements: a tile's offsets, over 128 rows, then fit in 32 bits
_OCTET = 8  # strides are passed in these units, see device/tiles.py


class Problem(NamedTuple):
    """A call in the numbers that kernels take.

    sample_q, sample_k: rows from a sample to the next, 0 where samples are packed.
    sizes: heads of the query, heads that read one head of the key, and rows of the tensors.
    """

    mask: Mask | None
    form: tiling.Form
    samples: int
    heads_q: int
    heads_k: int
    sample_q: int
    sample_k: int
    sizes: tuple[int, int, int, int]
    statistics_shape: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, call: Call, query: Tensor, key: Tensor) -> "Problem":
        rows_q, heads_q, head_dim = query.shape[-3:]
        rows_k, heads_k = key.shape[-3:-1]
        if isinstance(call.mask, Varlen):
            samples, sample_q, sample_k = call.mask.cu_seqlens_q.shape[0] - 1, 0, 0
            max_q, max_k = min(call.mask.max_seqlen_q, rows_q), min(call.mask.max_seqlen_k, rows_k)
            statistics_shape: tuple[int, ...] = (heads_q, rows_q)
        else:
            samples, sample_q, sample_k, max_q, max_k = query.shape[0], rows_q, rows_k, rows_q, rows_k
            statistics_shape = (samples, heads_q, rows_q)
        architecture = tiling.ANY if query.dtype == torch.float32 else _architecture(query.device)
        sparse, rope = isinstance(call.mask, BlockSparse), call.rope_query is not None
        form = tiling.Form(head_dim, architecture, sparse, rope, max_q, max_k)
        sizes = (heads_q, heads_q // heads_k, rows_q, rows_k)
        return cls(
            call.mask,
            form,
            samples,
            heads_q,
            heads_k,
            sample_q,
            sample_k,
            sizes,
            statistics_shape,
            query.device,
        )

    def lists(self, of_queries: bool) -> Sequence[Tensor]:
        """The six lists of device/mask.py, for a walk over queries or over keys."""
        if isinstance(self.mask, BlockSparse):
            m = self.mask
            if of_queries:
                return (
                    m.full_queries_offsets, m.full_queries, m.partial_queries_offsets, m.partial_queries,
                    m.partial_queries_place, m.partial_bits,
                )  # fmt: skip
            return (
                m.full_offsets, m.full_keys, m.partial_offsets, m.partial_keys, m.partial_keys, m.partial_bits,
            )  # fmt: skip
        unread = _unread(self.device)
        if isinstance(self.mask, Varlen):
            return self.mask.cu_seqlens_q, self.mask.cu_seqlens_k, unread, unread, unread, unread
        return (unread,) * 6

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """The four numbers of device/mask.py."""
        if isinstance(self.mask, BlockSparse):
            planes_of_sample = self.mask.mask_heads if self.mask.mask_batch > 1 else 0
            return *self.mask.block_size, planes_of_sample, int(self.mask.mask_heads > 1)
        if isinstance(self.mask, BlockCausal):
            return 0, min(self.mask.block_size, FAR), min(self.mask.query_offset, FAR - 1), 0
        if isinstance(self.mask, Varlen):
            return 1, 1 if self.mask.causal else FAR, 0, int(self.mask.causal)
        return 0, FAR, 0, 0


@functools.cache
def _unread(device: torch.device) -> Tensor:
    """What is not read still has to be a pointer of the declared type."""
    return torch.zeros(4, dtype=torch.int32, device=device)


@functools.cache
def _architecture(device: torch.device) -> str:
    if device.type != "cuda":
        return tiling.HOPPER  # interpreted
    return tiling.family(torch.cuda.get_device_capability(device))


def regular(x: Tensor) -> Tensor:
    """A copy where rows do not begin at multiples of 16 bytes, or lie further apart than a tile's offsets reach."""
    strides = [stride for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]
    aligned = x.data_ptr() % 16 == 0 and not any(stride % _OCTET for stride in strides)
    if aligned and x.stride(-1) == 1 and (x.shape[-3] == 1 or x.stride(-3) < _MAX_TOKEN_STRIDE):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def strides(x: Tensor) -> tuple[int, int, int]:
    """From a sample, a token, a head to the next, in octets."""
    strides = [0 if size == 1 else stride // _OCTET for size, stride in zip(x.shape, x.stride(), strict=True)]
    sample, token, head = (0, *strides[:-1]) if x.ndim == 3 else strides[:-1]
    return sample, token, head
