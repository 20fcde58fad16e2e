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

    Raises ValueError for dropout, a mask together with is_causal, or shapes that do not fit, TypeError for an additive
    mask; otherwise what `masked_attention` raises. Values and dtypes are those of `masked_attention`.
    """
    if dropout_p != 0.0:
        raise ValueError(f"dropout_p: expected 0.0, this attention has no dropout, got {dropout_p}")
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask: expected None together with is_causal=True")
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim not in (3, 4) or x.ndim != query.ndim:
            raise ValueError(f"{name}: expected [B, H, N, D] or [H, N, D] like query, got {list(x.shape)}")
    if query.ndim == 3:
        return scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask, dropout_p, is_causal, scale, enable_gqa
        )[0]
    if not enable_gqa and key.shape[1] != query.shape[1]:
        raise ValueError(
            f"key: expected {query.shape[1]} heads of query, or enable_gqa=True, got {key.shape[1]}"
        )
    mask: Mask | None = BlockCausal(1) if is_causal else None
    if isinstance(attn_mask, Tensor):
        if attn_mask.dtype != torch.bool:
            raise TypeError(
                f"attn_mask: expected bool, additive masks are not supported, got {attn_mask.dtype}"
            )
        shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        aligned = (1,) * (4 - attn_mask.ndim) + attn_mask.shape
        if len(aligned) != 4 or any(own not in (1, full) for own, full in zip(aligned, shape, strict=True)):
            raise ValueError(
                f"attn_mask: expected a shape that broadcasts to {list(shape)}, got {list(attn_mask.shape)}"
            )
        mask = BlockSparse.from_dense(attn_mask.expand(*attn_mask.shape[:-2], *shape[2:]))
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
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """`flash_attn.flash_attn_varlen_func` by `masked_attention` under `Varlen`.

    q `[total_q, Hq, D]`, k and v `[total_k, Hk, D]`, cu_seqlens int32 `[S + 1]`. Returns the shape and dtype of q.
    causal: aligned to the last query and key of each sequence; a query that sees no key gives zeros.
    deterministic: always so. dropout_p, window_size, softcap, alibi_slopes, return_attn_probs, block_table: their
        defaults alone.

    Raises ValueError for any other value of those, otherwise what `masked_attention` raises.
    """
    if tuple(window_size) != (-1, -1):
        raise ValueError(f"window_size: expected (-1, -1), this attention has no window, got {window_size}")
    for name, value, default in (
        ("dropout_p", dropout_p, 0.0),
        ("softcap", softcap, 0.0),
        ("return_attn_probs", return_attn_probs, False),
    ):
        if value != default:
            raise ValueError(f"{name}: expected {default}, this attention has none, got {value}")
    for name, tensor in (("alibi_slopes", alibi_slopes), ("block_table", block_table)):
        if tensor is not None:
            raise ValueError(f"{name}: expected None, this attention has none, got a tensor")
    mask = Varlen(cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k), causal)
    return masked_attention(q, k, v, mask=mask, scale=softmax_scale)
