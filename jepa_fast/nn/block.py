"""The pre-norm transformer block."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepa_fast.kernels.gelu_mlp.api import gelu_mlp

from .attention import Attention, Layout
from .fused import FusedModule
from .layers import LayerNorm, Linear


class MLP(FusedModule):
    """Linear, exact (erf) GELU, linear: `[..., D] -> [..., D]` in the compute dtype."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        parameters = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return gelu_mlp(x, *parameters, implementation="auto" if self.fused.gelu_mlp else "reference")


class Block(nn.Module):
    """`x + attention(norm1(x))`, then `x + mlp(norm2(x))`, on a residual stream `[B, N, D]` in its own dtype.

    Each sum is formed together with the LayerNorm that reads it, so a block begins after its first LayerNorm and
    ends with the one that follows it; `Blocks` chains them.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim)

    def forward(
        self,
        normalized: Tensor,
        x: Tensor,
        next_norm: LayerNorm,
        num_outputs: int | None = None,
        dtype: torch.dtype | None = None,
        layout: Layout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Args: normalized: `norm1(x)`. num_outputs, dtype, layout: see `Blocks`.

        Returns:
            `next_norm` of the new residual stream in `dtype`, and the stream.
        """
        update = self.attn(normalized, num_outputs, layout)
        if num_outputs is not None:
            x = x[:, x.shape[1] - num_outputs :]
        normalized, x = self.norm2.after_sum(update, x)
        return next_norm.after_sum(self.mlp(normalized), x, dtype)


class Blocks(nn.ModuleList):
    """Blocks one after the other, and the LayerNorm behind the last, `[B, N, D] -> [B, num_outputs, D]`."""

    checkpointing = False
    """Keeps only the streams between the blocks and computes each block again in the backward pass."""

    def forward(
        self,
        x: Tensor,
        norm: LayerNorm,
        num_outputs: int | None = None,
        dtype: torch.dtype | None = None,
        layout: Layout | None = None,
        taps: Mapping[int, LayerNorm] | None = None,
    ) -> Tensor:
        """Args:
        num_outputs: return, and compute in the last block, the last so many tokens only; None is all of them.
        dtype: of the result; None is the compute dtype.
        layout: masks and rotary positions of the tokens; packed `[T, D]` under `Varlen`.
        taps: LayerNorms of the streams behind inner blocks, by the number of the block, counted from 0. Their
            results come before that of `norm`, along D.
        """
        blocks = cast("list[Block]", list(self))
        tapped = []
        normalized = blocks[0].norm1(x)
        for number, (block, after) in enumerate(pairwise(blocks)):
            normalized, x = self._call(block, normalized, x, after.norm1, None, None, layout)
            if taps is not None and number in taps:
                tapped.append(taps[number](x, dtype))
        out = self._call(blocks[-1], normalized, x, norm, num_outputs, dtype, layout)[0]
        return torch.cat([*tapped, out], dim=-1) if tapped else out

    def _call(self, block: Block, *arguments: Any) -> tuple[Tensor, Tensor]:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)


def set_checkpointing(module: nn.Module, on: bool = True) -> None:
    """Switches activation checkpointing of all `Blocks` in `module`."""
    for part in module.modules():
        if isinstance(part, Blocks):
            part.checkpointing = on
