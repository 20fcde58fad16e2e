"""GELU in plain PyTorch: the oracle, and the fallback.

gelu(x)  = x Phi(x),  Phi(x) = (1 + erf(x / sqrt 2)) / 2              exact GELU (arXiv 1606.08415, section 2)
gelu'(x) = Phi(x) + x phi(x),  phi(x) = exp(-x^2 / 2) / sqrt(2 pi)
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def why_not(dtype: torch.dtype, features: int) -> list[str]:
    return []


def gelu(before: Tensor, out: Tensor | None = None) -> Tensor:
    """gelu(before), in `out` if given, which may be before itself."""
    after = F.gelu(before)
    return after if out is None else out.copy_(after)


def gelu_backward_(grad: Tensor, before: Tensor, recompute: bool) -> Tensor:
    """grad *= gelu'(before) for `[rows, D]`; if `recompute`, before = gelu(before). Returns the sum of grad over rows,
    in float32 (float64 for that)."""
    torch.ops.aten.gelu_backward.grad_input(grad, before, grad_input=grad)
    if recompute:
        gelu(before, before)
    return grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32))
