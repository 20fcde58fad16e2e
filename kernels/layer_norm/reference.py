"""Residual add and LayerNorm in plain PyTorch: the oracle, and the fallback.

    h    = r + d_b * s * (x + c)            r: residual, x: branch, c: its bias, s: LayerScale, d_b: drop path
    y    = w * (h - mean(h)) / sqrt(var(h) + eps) + b          (LayerNorm, arXiv 1607.06450, eq. 4)

with mean and variance over the last dimension of h as it is stored. With z = (h - mean) / sqrt(var + eps) and the
gradients g of y and g_h of h:

    dr   = (w g - mean(w g) - z mean(w g z)) / sqrt(var + eps) + g_h
    dx   = d_b * s * dr        dc = sum of dx        ds = sum of d_b * (x + c) * dr
    dw   = sum of g z          db = sum of g
"""

import torch
from torch import Tensor

from .branch import Branch, Gradients, Outputs


def why_not(dtypes: object, features: int, rows: int) -> list[str]:
    return []


def forward(
    residual: Tensor, branch: Branch | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Outputs:
    working = torch.float64 if residual.dtype == torch.float64 else torch.float32
    new = residual
    if branch is not None:
        assert branch.x is not None
        new = (residual.to(working) + _scaled(_biased(branch.x, branch, working), branch, working)).to(
            residual.dtype
        )
    wide = new.to(working)
    mean = wide.mean(-1)
    centred = wide - mean.unsqueeze(-1)
    rstd = (centred.square().mean(-1) + eps).rsqrt()
    normalized = centred * rstd.unsqueeze(-1) * weight.to(working) + bias.to(working)
    return Outputs(normalized.to(dtype), new, mean, rstd)


def backward(
    grad_normalized: Tensor,
    grad_new_residual: Tensor | None,
    new_residual: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    branch: Branch | None,
) -> Gradients:
    working, every_row = mean.dtype, (0, 1)
    grad = grad_normalized.to(working)
    z = (new_residual.to(working) - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
    scaled = grad * weight.to(working)
    slope = scaled - scaled.mean(-1, keepdim=True) - z * (scaled * z).mean(-1, keepdim=True)
    total = slope * rstd.unsqueeze(-1)
    if grad_new_residual is not None:
        total = total + grad_new_residual.to(working)
    sums = [(grad * z).sum(every_row), grad.sum(every_row)]
    grad_branch = None
    if branch is not None:
        of_branch = _scaled(total, branch, working)
        if not branch.shares_gradient(new_residual.dtype):
            grad_branch = of_branch.to(branch.dtype)
        if branch.bias is not None:
            sums.append(of_branch.sum(every_row))
        if branch.layer_scale is not None:
            assert branch.x is not None
            unscaled = _dropped(total, branch, working) * _biased(branch.x, branch, working)
            sums.append(unscaled.sum(every_row))
    return Gradients(total.to(new_residual.dtype), torch.stack(sums), grad_branch)


def _biased(x: Tensor, branch: Branch, working: torch.dtype) -> Tensor:
    return x.to(working) if branch.bias is None else x.to(working) + branch.bias.to(working)


def _scaled(x: Tensor, branch: Branch, working: torch.dtype) -> Tensor:
    if branch.layer_scale is not None:
        x = x * branch.layer_scale.to(working)
    return _dropped(x, branch, working)


def _dropped(x: Tensor, branch: Branch, working: torch.dtype) -> Tensor:
    return x if branch.drop_path is None else x * branch.drop_path.to(working)[:, None, None]
