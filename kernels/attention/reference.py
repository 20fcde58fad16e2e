"""Masked attention in plain PyTorch: the oracle, and the fallback.

    S = scale * rotate(Q) rotate(K)^T,  -inf where the mask hides a key         lse_i = log sum_j exp(S_ij)
    P = softmax(S) = exp(S - lse)       O = P V                                 (arXiv 1706.03762, equation 1)

    dV = P^T dO        dP = dO V^T      dS = P * (dP - rowsum(dO * O))
    d rotate(Q) = scale * dS rotate(K)  d rotate(K) = scale * dS^T rotate(Q)    then the rotation's transpose

Half precision is widened to float32 first. The scores of a sample, or of a packed sequence, are stored whole.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..rope import reference as rope
from ..rope.tables import Tables
from .call import Call
from .masks import Varlen


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast would take the products of the widened tensors back to half precision."""

    @functools.wraps(function)
    def wrapped(call: Call, query: Tensor, *arguments: Tensor) -> Any:
        with torch.autocast(query.device.type, enabled=False):
            return function(call, query, *arguments)

    return wrapped


def why_not(call: Call, query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    return []


@_without_autocast
def forward(call: Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = query.new_empty((*query.shape[:-3], query.shape[-2], query.shape[-3]), dtype=_working(query))
    wide = _wide(call, query, key, value)
    for rows_q, rows_k in _sequences(call, query, key):
        q, k, v = _by_head(call, wide, rows_q, rows_k)
        score = _scores(call, q, k)
        probability = _probabilities(score)
        out[..., rows_q, :, :] = (probability @ v).transpose(-2, -3).to(out.dtype)
        lse[..., rows_q] = score.logsumexp(-1)
    return out, lse


@_without_autocast
def backward(
    call: Call, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(call, query, key, value)
    # A token of no sequence cannot occur: the sequences cover all packed tokens.
    gradients = [torch.empty_like(x) for x in wide]
    for rows_q, rows_k in _sequences(call, query, key):
        q, k, v = _by_head(call, wide, rows_q, rows_k)
        o, do = (x[..., rows_q, :, :].to(q.dtype).transpose(-2, -3) for x in (out, grad_out))
        probability = _probabilities(_scores(call, q, k))
        slope = probability * (do @ v.mT - (do * o).sum(-1, keepdim=True)) * call.scale
        gradients[0][..., rows_q, :, :] = (slope @ k).transpose(-2, -3)
        for gradient, by_query_head in ((gradients[1], slope.mT @ q), (gradients[2], probability.mT @ do)):
            heads_k = key.shape[-2]
            by_key_head = by_query_head.unflatten(-3, (heads_k, -1)).sum(-3) if heads_k else by_query_head
            gradient[..., rows_k, :, :] = by_key_head.transpose(-2, -3)
    for place, tables in enumerate((call.rope_query, call.rope_key)):
        if tables is not None:
            (gradients[place],) = rope.rotate(tables, [gradients[place]], True)
    dq, dk, dv = (gradient.to(x.dtype) for gradient, x in zip(gradients, (query, key, value), strict=True))
    return dq, dk, dv


def _working(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _wide(call: Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated, contiguous, in the working dtype."""

    def turned(x: Tensor, tables: Tables | None) -> Tensor:
        x = x.to(_working(x)).contiguous()
        return x if tables is None else rope.rotate(tables, [x], False)[0]

    return turned(query, call.rope_query), turned(key, call.rope_key), turned(value, None)


def _sequences(call: Call, query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Ranges of tokens that see nothing of each other: packed sequences, or all."""
    if isinstance(call.mask, Varlen):
        starts_q, starts_k = call.mask.cu_seqlens_q.tolist(), call.mask.cu_seqlens_k.tolist()
        for i in range(len(starts_q) - 1):
            yield slice(starts_q[i], starts_q[i + 1]), slice(starts_k[i], starts_k[i + 1])
    else:
        yield slice(0, query.shape[-3]), slice(0, key.shape[-3])


def _by_head(
    call: Call, wide: tuple[Tensor, Tensor, Tensor], rows_q: slice, rows_k: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """`[.., Hq, N, D]`, the heads of key and value repeated for their query heads."""
    q, k, v = (
        x[..., rows, :, :].transpose(-2, -3) for x, rows in zip(wide, (rows_q, rows_k, rows_k), strict=True)
    )
    heads_q, heads_k = q.shape[-3], k.shape[-3]
    repeats = heads_q // heads_k if heads_k else 1
    return q, k.repeat_interleave(repeats, -3), v.repeat_interleave(repeats, -3)


def _scores(call: Call, q: Tensor, k: Tensor) -> Tensor:
    score = (q @ k.mT) * call.scale
    queries, keys = score.shape[-2:]
    if call.mask is None:
        return score
    if isinstance(call.mask, Varlen):  # of one sequence alone
        if not call.mask.causal:
            return score
        visible = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    else:
        visible = call.mask.dense(queries, keys, q.device)
    return score.masked_fill(~visible, -torch.inf)


def _probabilities(score: Tensor) -> Tensor:
    """Rows that see no key have none."""
    return score.softmax(-1).masked_fill((score == -torch.inf).all(-1, keepdim=True), 0.0)
