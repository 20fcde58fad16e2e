"""Residual add and LayerNorm on the CPU in C++ (cpu.cpp)."""

import torch
from torch import Tensor

from ..runtime import native
from .branch import Branch, Gradients, Optional3, Outputs

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_NOTHING: Optional3 = (None, None, None)


def why_not(dtypes: dict[str, torch.dtype], features: int, rows: int) -> list[str]:
    return [
        f"{name} is {dtype}; the kernel takes float32, bfloat16 and float16"
        for name, dtype in dtypes.items()
        if dtype not in _TYPES
    ]


def forward(
    residual: Tensor, branch: Branch | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Outputs:
    normalized = torch.empty(residual.shape, dtype=dtype)
    new_residual = residual if branch is None else torch.empty(residual.shape, dtype=residual.dtype)
    mean, rstd = (torch.empty(residual.shape[:2], dtype=torch.float32) for _ in range(2))
    native.function("layer_norm_forward")(
        residual,
        None if branch is None else branch.x,
        *_factors(branch, residual),
        weight.float().contiguous(),
        bias.float().contiguous(),
        normalized,
        new_residual,
        mean,
        rstd,
        eps,
        torch.get_num_threads(),
    )
    return Outputs(normalized, new_residual, mean, rstd)


def backward(
    grad_normalized: Tensor,
    grad_new_residual: Tensor | None,
    new_residual: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    branch: Branch | None,
) -> Gradients:
    shape = new_residual.shape
    grad_residual = torch.empty(shape, dtype=new_residual.dtype)
    grad_branch = None
    if branch is not None and not branch.shares_gradient(new_residual.dtype):
        grad_branch = torch.empty(shape, dtype=branch.dtype)
    sums = torch.empty((2 + (0 if branch is None else branch.vectors), shape[2]), dtype=torch.float32)
    native.function("layer_norm_backward")(
        grad_normalized,
        grad_new_residual,
        new_residual,
        mean,
        rstd,
        weight.float().contiguous(),
        branch.x if branch is not None and branch.layer_scale is not None else None,
        *_factors(branch, new_residual),
        grad_residual,
        grad_branch,
        sums,
        branch is not None and branch.bias is not None,
        torch.get_num_threads(),
    )
    return Gradients(grad_residual, sums, grad_branch)


def _factors(branch: Branch | None, residual: Tensor) -> Optional3:
    """bias, layer_scale and drop_path: all three, or none where x is added as it is. The kernel has no other cases."""
    if branch is None or branch.is_plain:
        return _NOTHING
    bias, scale, drop = branch.in_float32()
    features = residual.shape[2]
    return (
        torch.zeros(features, dtype=torch.float32) if bias is None else bias,
        torch.ones(features, dtype=torch.float32) if scale is None else scale,
        torch.ones(residual.shape[0], dtype=torch.float32) if drop is None else drop,
    )
