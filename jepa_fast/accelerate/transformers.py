"""`"jepa_fast"` as an attention implementation of transformers: `model.set_attn_implementation("jepa_fast")`."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from jepa_fast.kernels.attention.api import masked_attention
from jepa_fast.kernels.attention.masks import BlockCausal, BlockSparse
from jepa_fast.kernels.attention.masks.base import Mask

from .shared import Shared

__all__ = ["attention_forward", "register_attention"]

NAME = "jepa_fast"
# What other interfaces take and this one has no kernel for.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache")
_masks: Shared[BlockSparse] = Shared()


def register_attention() -> None:
    """Make `"jepa_fast"` known to transformers, together with its mask function: boolean masks, as for "sdpa".

    `optimize_` does it where transformers has been imported. Raises ImportError without transformers.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def register_if_imported() -> None:
    if "transformers.modeling_utils" in sys.modules:
        register_attention()


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention interface of transformers by `masked_attention`.

    query `[B, Hq, N, D]`, key and value `[B, Hk, M, D]`, Hk a divisor of Hq. attention_mask: boolean
    `[B or 1, H or 1, N, M]`, True where a query sees a key, or None. Returns (`[B, N, Hq, D]`, None). Additive masks
    and dropout go to transformers' own "sdpa".

    Raises ValueError for what "sdpa" does not serve either, such as softcap.
    """
    if (
        any(kwargs.get(name) is not None for name in _UNSUPPORTED)
        or dropout > 0.0
        or _is_additive(attention_mask)
    ):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    length = query.shape[2]
    mask: Mask | None = None
    if attention_mask is not None:
        mask = _masks.get(attention_mask, (length, key.shape[2]), lambda: _blocks(attention_mask, query, key))
    elif causal and length > 1:
        mask = BlockCausal(1)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return masked_attention(query, key, value, mask=mask, scale=scaling), None


def _is_additive(mask: Tensor | None) -> bool:
    return mask is not None and mask.dtype != torch.bool


def _blocks(mask: Tensor, query: Tensor, key: Tensor) -> BlockSparse:
    return BlockSparse.from_dense(mask.expand(*mask.shape[:-2], query.shape[2], key.shape[2]))
