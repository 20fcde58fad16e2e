"""The pre-norm transformer block."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from jepa_fast.kernels.gelu_mlp.api import gelu_mlp

from .attention import Attention
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
    ) -> tuple[Tensor, Tensor]:
        """Args: normalized: `norm1(x)`. num_outputs, dtype: see `Blocks`.

        Returns:
            `next_norm` of the new residual stream in `dtype`, and the stream.
        """
        update = self.attn(normalized, num_outputs)
        if num_outputs is not None:
            x = x[:, x.shape[1] - num_outputs :]
        normalized, x = self.norm2.after_sum(update, x)
        return next_norm.after_sum(self.mlp(normalized), x, dtype)


class Blocks(nn.ModuleList):
    """Blocks one after the other, and the LayerNorm behind the last, `[B, N, D] -> [B, num_outputs, D]`."""

    def forward(
        self,
        x: Tensor,
        norm: LayerNorm,
        num_outputs: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Args:
        num_outputs: return, and compute in the last block, the last so many tokens only; None is all of them.
        dtype: of the result; None is the compute dtype.
        """
        blocks = cast("list[Block]", list(self))
        normalized = blocks[0].norm1(x)
        for block, after in pairwise(blocks):
            normalized, x = block(normalized, x, after.norm1)
        return blocks[-1](normalized, x, norm, num_outputs, dtype)[0]
