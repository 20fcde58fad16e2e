"""The mask of V-JEPA 2-AC without its entries.

The published predictor builds a boolean matrix of all its tokens against all others when it is made, 4.36 GB for 512
frames, and copies a piece of it to the device in every forward.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jepa_fast.kernels.attention.masks import BlockCausal, BlockSparse
from jepa_fast.kernels.attention.masks.base import Mask

from .shared import Shared

_CPU = torch.device("cpu")
_masks: Shared[BlockSparse] = Shared()


@dataclass(frozen=True)
class FrameCausal:
    """Stands where the matrix stood: it can be sliced from its first entry, moved, and given to an attention. Ours
    reads the rule; `F.scaled_dot_product_attention` gets the matrix, made for the occasion.

    step: tokens of a time step. length: rows and columns.
    """

    step: int
    length: int
    device: torch.device = _CPU

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.length, self.length))

    @property
    def dtype(self) -> torch.dtype:
        return torch.bool

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.length

    def __getitem__(self, index: Any) -> "FrameCausal":
        rows, columns = index if isinstance(index, tuple) and len(index) == 2 else (None, None)
        if not (
            isinstance(rows, slice) and rows == columns and rows.start in (None, 0) and rows.step in (None, 1)
        ):
            raise IndexError(f"index: expected [:n, :n] of a causal mask, got {index}")
        length = self.length if rows.stop is None else min(int(rows.stop), self.length)
        return FrameCausal(self.step, length, self.device)

    def to(self, device: Any, *_: Any, **__: Any) -> "FrameCausal":
        return FrameCausal(self.step, self.length, torch.device(device))

    def dense(self) -> Tensor:
        return BlockCausal(self.step).dense(self.length, self.length, self.device)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        def plain(value: Any) -> Any:
            return value.dense() if isinstance(value, FrameCausal) else value

        return function(*map(plain, args), **{name: plain(value) for name, value in (kwargs or {}).items()})


def of_matrix(mask: Any, step: int) -> FrameCausal | None:
    """The rule behind a boolean matrix, or None if it follows another one."""
    if isinstance(mask, FrameCausal):
        return mask if mask.step == step else None
    if (
        not isinstance(mask, Tensor)
        or mask.dtype != torch.bool
        or mask.ndim != 2
        or len(mask) != mask.shape[1]
    ):
        return None
    for start in range(0, len(mask), step):
        rows = mask[start : start + step]
        if not rows[:, : start + step].all() or rows[:, start + step :].any():
            return None
    return FrameCausal(step, len(mask), mask.device)


def mask_of(attn_mask: Any) -> Mask | None:
    """For `masked_attention`; None for what is neither a rule nor boolean."""
    if isinstance(attn_mask, FrameCausal):
        return BlockCausal(attn_mask.step)
    if isinstance(attn_mask, Tensor) and attn_mask.dtype == torch.bool and attn_mask.ndim == 2:
        return _masks.get(attn_mask, "blocks", lambda: BlockSparse.from_dense(attn_mask))
    return None
