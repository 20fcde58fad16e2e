"""Multi-head self-attention."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels.attention.api import masked_attention
from jepa_fast.kernels.attention.masks import Mask
from jepa_fast.kernels.rope.positions import Rope3D
from jepa_fast.kernels.runtime.derivative import differentiable_once

from .fused import FusedModule
from .layers import Linear


class _SoftmaxAttention(torch.autograd.Function):
    """Attention that keeps its probabilities for the backward; `qkv [B, N, 3, heads, head_dim]`.

    For short sequences in half precision on the CPU, which PyTorch's products are made for. Forward and backward, two
    cores of an AMD EPYC (Zen 4): 64 x 72 tokens, 6 heads of 64, 13 ms for 19 with our kernel; 8 x 256 tokens, 3 heads
    of 64, 5.9 for 8.2. In float32 those are 22 for 22 and 12 for 10; with 1460 tokens 2270 for 530, and 800 for 410
    in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_queries: int) -> Tensor:
        batch, tokens, _, heads, dim = qkv.shape
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query = query[:, :, tokens - num_queries :].reshape(batch * heads, num_queries, dim)
        key = key.reshape(batch * heads, tokens, dim)
        value = value.reshape(batch * heads, tokens, dim)
        probability = _scaled_bmm(query, key.transpose(1, 2), dim**-0.5)  # [B * heads, num_queries, N]
        torch.softmax(probability, -1, out=probability)
        ctx.save_for_backward(query, key, value, probability)
        ctx.shape = qkv.shape
        out = torch.bmm(probability, value).view(batch, heads, num_queries, dim)
        return out.transpose(1, 2).reshape(batch, num_queries, heads * dim)

    @staticmethod
    @differentiable_once("Attention")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        query, key, value, probability = ctx.saved_tensors
        batch, tokens, _, heads, dim = ctx.shape
        num_queries = query.shape[1]
        grad = grad.view(batch, num_queries, heads, dim).transpose(1, 2).reshape(query.shape)
        grad_probability = torch.bmm(grad, value.transpose(1, 2))
        grad_score = torch._softmax_backward_data(grad_probability, probability, -1, probability.dtype)
        by_head = (batch, heads, -1, dim)
        grad_qkv = grad.new_empty(ctx.shape)
        grad_query, grad_key, grad_value = grad_qkv.permute(2, 0, 3, 1, 4).unbind(0)
        grad_query[:, :, : tokens - num_queries].zero_()
        grad_query[:, :, tokens - num_queries :] = _scaled_bmm(grad_score, key, dim**-0.5).view(by_head)
        grad_key.copy_(_scaled_bmm(grad_score.transpose(1, 2), query, dim**-0.5).view(by_head))
        grad_value.copy_(torch.bmm(probability.transpose(1, 2), grad).view(by_head))
        return grad_qkv, None


_SHORT = 384  # tokens: there both take the same time; at 512 ours takes 0.6 to 0.95 of it


def _scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`scale * a @ b` in one pass; with beta = 0 the first argument of `baddbmm` is not read."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


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
            query, key, value = qkv.unbind(-3)
            implementation = "auto" if self.fused.attention else "reference"
            out = masked_attention(
                query, key, value, mask=layout.mask, rope=layout.rope, implementation=implementation
            )
            return self.proj(out.flatten(-2))
        batch, tokens, dim = x.shape
        num_queries = tokens if num_queries is None else num_queries
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        if x.device.type == "cpu":
            short = tokens <= _SHORT and qkv.dtype != torch.float32
            if qkv.requires_grad and (short or not self.fused.attention):
                return self.proj(_SoftmaxAttention.apply(qkv, num_queries))
            if self.fused.attention:
                query, key, value = qkv.unbind(-3)
                return self.proj(masked_attention(query[:, tokens - num_queries :], key, value).flatten(-2))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, head_dim]
        out = F.scaled_dot_product_attention(query[:, :, tokens - num_queries :], key, value)
        return self.proj(out.transpose(1, 2).reshape(batch, num_queries, dim))
