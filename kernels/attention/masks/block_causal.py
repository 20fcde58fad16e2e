"""Causal over steps of several tokens, full inside a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import check_integer


@dataclass(frozen=True)
class BlockCausal:
    """A token sees every token of its own step and of the steps before it.

    The mask of V-JEPA 2-AC (arXiv 2506.09985), whose steps have 258 tokens: two of conditioning, 256 of image.

    block_size: tokens of a step. A last step that is not whole is as good as any.
    query_offset: position of the first query among the keys, for keys and values of earlier steps that are kept.
    """

    block_size: int
    query_offset: int = 0

    kind: ClassVar[str] = "block_causal"
    packed: ClassVar[bool] = False

    def tensors(self) -> list[Tensor]:
        return []

    def integers(self) -> list[int]:
        return [self.block_size, self.query_offset]

    @classmethod
    def rebuild(cls, tensors: Sequence[Tensor], integers: Sequence[int]) -> "BlockCausal":
        return cls(integers[0], integers[1])

    def check(self, query: Tensor, key: Tensor) -> None:
        check_integer("block_size", self.block_size, least=1)
        check_integer("query_offset", self.query_offset)

    def visible(self, query: int, key_length: int) -> int:
        """How many keys, from the first on, the query with this index sees."""
        return min(
            (query + self.query_offset) // self.block_size * self.block_size + self.block_size, key_length
        )

    def dense(self, query_length: int, key_length: int, device: torch.device) -> Tensor:
        step_q = (torch.arange(query_length, device=device) + self.query_offset) // self.block_size
        step_k = torch.arange(key_length, device=device) // self.block_size
        return step_k[None, :] <= step_q[:, None]
