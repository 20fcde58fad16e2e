"""Multi-head self-attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels.attention.api import masked_attention
from jepa_fast.kernels.attention.joint import parts_of
from jepa_fast.kernels.attention.masks import Mask
from jepa_fast.kernels.rope.positions import Rope3D

from .fused import FusedModule
from .layers import Linear


@dataclass(frozen=True, eq=False)
class Layout:
    """What attention has to know of the tokens of a stream `[B, N, D]`, or packed `[T, D]`, besides their values.

    mask: which tokens a token sees; None is all of its sample.
    rope: their rotary positions; None where positions were added to the tokens.
    """

    mask: Mask | None = None
    rope: Rope3D | None = None


class Attention(FusedModule):
    """Multi-head self-attention with a fused `qkv` projection, `[B, N, D] -> [B, num_queries, D]`.

    The rows of `qkv` are query, key and value, each heads x head_dim. All tokens are keys and values.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of dim = {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, num_queries: int | None = None, layout: Layout | None = None) -> Tensor:
        """Args:
        x: `[B, N, D]`, or `[T, D]` in a layout of packed sequences.
        num_queries: attend for the last so many tokens only; None is all of them. Not with a layout.
        layout: masks and rotary positions; None has neither.
        """
        if layout is not None:
            qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
            query, key, value = parts_of(qkv)
            implementation = "auto" if self.fused.attention else "reference"
            out = masked_attention(
                query, key, value, mask=layout.mask, rope=layout.rope, implementation=implementation
            )
            return self.proj(out.flatten(-2))
        batch, tokens, dim = x.shape
        num_queries = tokens if num_queries is None else num_queries
        if x.device.type == "cpu" and self.fused.attention:
            return self.proj(masked_attention(*self._projections(x, num_queries)).flatten(-2))
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, head_dim]
        query = query[:, :, tokens - num_queries :]
        if x.device.type == "cpu":
            # I-JEPA's. In bfloat16 PyTorch's kernel takes 2 to 4 times as long, up to 256 tokens.
            weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
            out = weights @ value
        else:
            out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).reshape(batch, num_queries, dim))

    def _projections(self, x: Tensor, num_queries: int) -> Sequence[Tensor]:
        """Queries of the last tokens, keys and values of all, `[B, N, heads, head_dim]`."""
        tokens, dim = x.shape[1:]
        if num_queries == tokens:
            return parts_of(self.qkv(x).unflatten(-1, (3, self.num_heads, -1)))
        query = self.qkv(x[:, tokens - num_queries :], (0, dim)).unflatten(-1, (self.num_heads, -1))
        key_value = self.qkv(x, (dim, 3 * dim)).unflatten(-1, (2, self.num_heads, -1))
        return query, *parts_of(key_value)
