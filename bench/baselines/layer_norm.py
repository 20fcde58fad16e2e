"""The residual add and the LayerNorm after it as published vision transformers write them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Two calls under autocast, and the cast to autocast's dtype that the linear layer behind them begins with.

    The sum of two dtypes has the wider one, so a bfloat16 stream is one that the caller keeps so.
    """
    with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        new = residual + x
        normalized = F.layer_norm(new, weight.shape, weight, bias, eps)
    return normalized.to(dtype), new
