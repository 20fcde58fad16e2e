"""The masks, each in its own file: which keys a query sees, and how a kernel is told."""

from .base import Mask
from .block_causal import BlockCausal
from .block_sparse import BlockSparse
from .varlen import Varlen

KINDS: dict[str, type[Varlen] | type[BlockCausal] | type[BlockSparse]] = {
    mask.kind: mask for mask in (Varlen, BlockCausal, BlockSparse)
}

__all__ = ["KINDS", "BlockCausal", "BlockSparse", "Mask", "Varlen"]
