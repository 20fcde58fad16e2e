"""The pre-norm transformer block."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jepa_fast.kernels.runtime.products import linear

from .attention import Attention
from .layers import LayerNorm, Linear, cast_parameter, compute_dtype


class _MLP(torch.autograd.Function):
    """`gelu(x w1' + b1) w2' + b2`; dtypes as in `Linear`. The backward works in the memory of the saved hidden layer:
    it is the largest tensor of a step, and without that three of its size would be alive at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        ctx.dtype = w1.dtype
        w1, b1, w2, b2 = (cast_parameter(parameter, x.dtype) for parameter in (w1, b1, w2, b2))
        before = linear(x, w1, b1)
        after = F.gelu(before)
        ctx.save_for_backward(x, w1, w2, before, after)
        return linear(after, w2, b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, w1, w2, before, after = ctx.saved_tensors
        shape = x.shape
        x, grad, before, work = (tensor.flatten(0, -2) for tensor in (x, grad, before, after))
        # For a product narrower than its operands are long, the wide operand is better the transposed one.
        grad_w2 = (work.t() @ grad).t().to(ctx.dtype, memory_format=torch.contiguous_format)
        torch.mm(grad, w2, out=work)
        torch.ops.aten.gelu_backward.grad_input(work, before, grad_input=work)
        grad_w1, grad_b1, grad_b2 = (t.to(ctx.dtype) for t in (work.t() @ x, work.sum(0), grad.sum(0)))
        return (work @ w1).view(shape), grad_w1, grad_b1, grad_w2, grad_b2


class MLP(nn.Module):
    """Linear, exact (erf) GELU, linear: `[..., D] -> [..., D]`."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(compute_dtype(x))
        return _MLP.apply(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)


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
        blocks = list(self)
        normalized = blocks[0].norm1(x)
        for block, after in pairwise(blocks):
            normalized, x = block(normalized, x, after.norm1)
        return blocks[-1](normalized, x, norm, num_outputs, dtype)[0]
