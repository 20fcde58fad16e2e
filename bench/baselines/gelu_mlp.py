"""The MLP of a transformer block as published vision transformers write it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, dtype: torch.dtype) -> Tensor:
    """Two linear layers round an exact GELU, under autocast if `dtype` is bfloat16."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
