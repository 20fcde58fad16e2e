"""Attention as other libraries compute it, on `[batch, tokens, heads, dim]` or packed `[tokens, heads, dim]`."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jepa_fast import Varlen
from jepa_fast.bench.measure.peers import installed

Attention = Callable[..., Tensor]
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
ON_A_CPU = ("flash", "math")


def by_head(attention: Attention, *tensors: Tensor, **options: Any) -> Tensor:
    """`attention` of `[B, H, N, D]` on `[B, N, H, D]`."""
    return attention(*(x.transpose(1, 2) for x in tensors), **options).transpose(1, 2)


def sdpa_backends(device: torch.device) -> Iterator[tuple[str, Attention]]:
    """One backend each, which serves or raises."""
    for name, backend in BACKENDS.items():
        if device.type == "cuda" or name in ON_A_CPU:
            yield f"SDPA {name}", partial(by_head, partial(_sdpa_by, backend))


def flex(tokens: int, step: int | None, device: torch.device) -> Iterator[tuple[str, Attention]]:
    """FlexAttention under steps that see themselves and those before, or without a mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    block_mask = None
    if step is not None:
        block_mask = create_block_mask(
            lambda b, h, q, k: q // step >= k // step, None, None, tokens, tokens, device=str(device)
        )
    yield "FlexAttention", partial(by_head, torch.compile(flex_attention), block_mask=block_mask)


def packed(mask: Varlen, lengths: Sequence[int]) -> Iterator[tuple[str, Attention]]:
    """Sequences of any lengths one behind the other, by what is installed."""
    offsets, longest = mask.cu_seqlens_q, mask.max_seqlen_q
    if installed("torch.nn.attention.varlen"):
        from torch.nn.attention.varlen import varlen_attn

        varlen: Callable[..., Any] = varlen_attn
        yield (
            "torch varlen",
            partial(varlen, cu_seq_q=offsets, cu_seq_k=offsets, max_q=longest, max_k=longest),
        )
    if installed("flash_attn"):
        import flash_attn

        yield (
            "flash-attn varlen",
            partial(
                flash_attn.flash_attn_varlen_func,
                cu_seqlens_q=offsets,
                cu_seqlens_k=offsets,
                max_seqlen_q=longest,
                max_seqlen_k=longest,
            ),
        )
    if installed("xformers"):
        from xformers import ops

        bias = ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(lengths))

        def block_diagonal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            one = [x.unsqueeze(0) for x in (query, key, value)]
            return ops.memory_efficient_attention(*one, attn_bias=bias)[0]

        yield "xformers", block_diagonal


def unmasked() -> Iterator[tuple[str, Attention]]:
    """Every token sees every token, by what is installed."""
    if installed("flash_attn"):
        import flash_attn

        yield "flash-attn", flash_attn.flash_attn_func
    if installed("xformers"):
        from xformers import ops

        yield "xformers", ops.memory_efficient_attention


def _sdpa_by(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value)
