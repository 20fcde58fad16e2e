"""`masked_attention` with the signatures of PyTorch's and flash-attention's functions: change the import alone."""

import torch
from torch import Tensor

from .api import masked_attention
from .masks import BlockCausal, BlockSparse, Mask, Varlen

__all__ = ["flash_attn_varlen_func", "scaled_dot_product_attention"]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | BlockCausal | BlockSparse | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` by `masked_attention`.

    query `[B, Hq, Nq, D]`, key and value `[B, Hk, Nk, D]`, or all without B; Hq may differ from Hk where `enable_gqa`.
    attn_mask: bool, True where a query sees a key, of a shape that broadcasts to `[B, Hq, Nq, Nk]`; it is cut into
        blocks at every call, so give one `BlockSparse` (or a `BlockCausal`) to calls that share a mask.
    dropout_p: 0. is_causal: query i sees keys 0 .. i, however many keys there are.

    Returns the shape of query, laid out in memory as `[B, Nq, Hq, D]`: `out.transpose(1, 2)` is free.

    Raises ValueError for dropout, an additive mask, or a mask together with is_causal; otherwise what
    `masked_attention` raises. Values and dtypes are those of `masked_attention`.
    """
    if dropout_p != 0.0:
        raise ValueError(f"dropout_p: expected 0.0, this attention has no dropout, got {dropout_p}")
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask: expected None together with is_causal=True")
    if query.ndim == 3:
        return scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask, dropout_p, is_causal, scale, enable_gqa
        )[0]
    if not enable_gqa and key.ndim == 4 and query.ndim == 4 and key.shape[1] != query.shape[1]:
        raise ValueError(
            f"key: expected {query.shape[1]} heads of query, or enable_gqa=True, got {key.shape[1]}"
        )
    mask: Mask | None = BlockCausal(1) if is_causal else None
    if isinstance(attn_mask, Tensor):
        if attn_mask.dtype != torch.bool:
            raise TypeError(
                f"attn_mask: expected bool, additive masks are not supported, got {attn_mask.dtype}"
            )
        tokens = (query.shape[-2], key.shape[-2])
        mask = BlockSparse.from_dense(attn_mask.expand(*attn_mask.shape[:-2], *tokens))
    elif attn_mask is not None:
        mask = attn_mask
    out = masked_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask=mask, scale=scale
    )
    return out.transpose(1, 2)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
) -> Tensor:
    """`flash_attn.flash_attn_varlen_func` by `masked_attention` under `Varlen`.

    q `[total_q, Hq, D]`, k and v `[total_k, Hk, D]`, cu_seqlens int32 `[S + 1]`. Returns the shape and dtype of q.
    causal: aligned to the last query and key of each sequence; a query that sees no key gives zeros.
    deterministic: for the backward; `torch.use_deterministic_algorithms` asks for it as well.

    Raises ValueError for dropout, otherwise what `masked_attention` raises.
    """
    if dropout_p != 0.0:
        raise ValueError(f"dropout_p: expected 0.0, this attention has no dropout, got {dropout_p}")
    if deterministic and not torch.are_deterministic_algorithms_enabled():
        raise ValueError("deterministic: call torch.use_deterministic_algorithms(True) instead")
    mask = Varlen(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)
    return masked_attention(q, k, v, mask=mask, scale=softmax_scale)
