"""The parts of a transformer block that the adapters share."""

from typing import Any

import torch
from torch import Tensor, nn

from jepa_fast.kernels.attention.api import Rope, masked_attention
from jepa_fast.kernels.attention.masks.base import Mask
from jepa_fast.kernels.gelu_mlp.api import gelu_mlp
from jepa_fast.kernels.layer_norm.api import add_layer_norm, layer_norm

from .adapter import plain_linear, plain_norm


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = None,
    rope: Rope | None = None,
    scale: float | None = None,
) -> Tensor:
    """`masked_attention` of `[B, N, H, D]`, as `[B, N, H * D]`.

    Where the dtypes differ, as they do when only some of them were normalised in float32, the widest is taken.
    """
    if not query.dtype == key.dtype == value.dtype:
        dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return masked_attention(query, key, value, mask=mask, rope=rope, scale=scale).flatten(2)


def norm(module: Any, x: Tensor) -> Tensor:
    """A LayerNorm whose result only matrix products read, in their dtype."""
    if plain_norm(module) and _in_one_type(x, module):
        return layer_norm(x, module.weight, module.bias, eps=module.eps)
    return module(x)


def add_norm(update: Tensor, x: Tensor, module: Any) -> tuple[Tensor, Tensor]:
    """(LayerNorm of x + update, x + update), for a LayerNorm as in `norm`."""
    fits = torch.promote_types(update.dtype, x.dtype) == x.dtype and update.shape == x.shape
    if fits and plain_norm(module) and _in_one_type(x, module):
        return add_layer_norm(update, x, module.weight, module.bias, eps=module.eps)
    x = x + update
    return module(x), x


def _in_one_type(x: Tensor, module: nn.LayerNorm) -> bool:
    """Whether `F.layer_norm` would take this pair outside of autocast, where it refuses mixtures that the op serves."""
    return x.dtype == module.weight.dtype or torch.is_autocast_enabled(x.device.type)


def mlp(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor | None:
    """Linear, exact GELU, linear; None where somebody else has to do it."""
    if not plain_linear(first, second) or first.bias is None or second.bias is None:
        return None
    if x.dtype != first.weight.dtype and not torch.is_autocast_enabled(x.device.type):
        return None
    return gelu_mlp(x, first.weight, first.bias, second.weight, second.bias)
