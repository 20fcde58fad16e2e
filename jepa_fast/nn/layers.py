"""The linear layer of the model stack, and the rules that all its layers share.

Parameters, residual streams and LayerNorm stay in float32. Under `torch.autocast` the matrix products run in its
dtype: a linear layer casts its input and its parameters, and returns that dtype. A training step uses each
weight once, so no cast is repeated; where the optimizer has written the cast already, `using_copies` saves it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from jepa_fast.kernels.layer_norm.api import add_layer_norm, layer_norm
from jepa_fast.kernels.runtime.derivative import differentiable_once
from jepa_fast.kernels.runtime.products import cast_parameter, linear, linear_gradients

from .fused import FusedModule

INIT_STD = 0.02
NORM_EPS = 1e-6


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products on `x`: autocast's where it is on, else that of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _Linear(torch.autograd.Function):
    """`x [..., K]` in the compute dtype, parameters in theirs; the gradients have the same two dtypes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rows: tuple[int, int], ours: bool
    ) -> Tensor:
        ctx.dtype, ctx.rows, ctx.of, ctx.ours = weight.dtype, rows, len(weight), ours
        weight, bias = (cast_parameter(p, x.dtype)[rows[0] : rows[1]] for p in (weight, bias))
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias, ours=ours)

    @staticmethod
    @differentiable_once("Linear")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, grad = x.flatten(0, -2), grad.flatten(0, -2)
        grads = linear_gradients(grad, rows, weight, wants_x=ctx.needs_input_grad[0], ours=ctx.ours)
        assert grads.bias is not None
        of_parameters = (_among(g.to(ctx.dtype), ctx.rows, ctx.of) for g in (grads.weight, grads.bias))
        return None if grads.x is None else grads.x.view(x.shape), *of_parameters, None, None


def _among(grad: Tensor, rows: tuple[int, int], count: int) -> Tensor:
    """Zeros with these rows among them; the tensor itself if they are all."""
    if rows == (0, count):
        return grad
    every = grad.new_zeros((count, *grad.shape[1:]))
    every[rows[0] : rows[1]] = grad
    return every


class Linear(nn.Linear, FusedModule):
    """Linear layer with bias, `[..., K] -> [..., N]`, in the compute dtype.

    The weight is drawn from a normal distribution of standard deviation 0.02, the bias starts at zero.
    """

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=INIT_STD)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
        """rows: from and to which row of the weight, those features alone are computed; None is all of them."""
        rows = (0, self.out_features) if rows is None else rows
        return _Linear.apply(x.to(compute_dtype(x)), self.weight, self.bias, rows, self.fused.linear)


class LayerNorm(nn.LayerNorm, FusedModule):
    """LayerNorm over the last dimension, of a residual stream or of a sum that becomes one."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=NORM_EPS)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """dtype: of the result; None is the compute dtype."""
        dtype = compute_dtype(x) if dtype is None else dtype
        if self.fused.layer_norm:
            return layer_norm(x, self.weight, self.bias, eps=self.eps, dtype=dtype)
        return super().forward(x).to(dtype)

    def after_sum(
        self, update: Tensor, residual: Tensor, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """LayerNorm of `residual + update`, and the sum in the dtype of `residual`."""
        dtype = compute_dtype(residual) if dtype is None else dtype
        if self.fused.layer_norm:
            return add_layer_norm(update, residual, self.weight, self.bias, eps=self.eps, dtype=dtype)
        # A sum of two dtypes casts to a temporary; this one is used for the result.
        same = update.dtype == residual.dtype
        total = residual + update if same else update.to(residual.dtype).add_(residual)
        return self(total, dtype), total
