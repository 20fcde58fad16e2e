"""Token routing in plain PyTorch: the oracle, and the fallback.

    gather     out[e B + b, k]  = x[b, i] + position[i]                       i = index[e B + b, k]
    assemble   out[(m E + e) B + b] = [ context[e B + b, j] + position[context_index[e B + b, j]]    for j < Nc,
                                        mask_token + position[target_index[m B + b, j]]              for j < Np ]

as I-JEPA's encoder and predictor do (arXiv 2301.08243, section 3). Half precision is widened to float32 before a sum.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .index import check_values


def why_not(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[str]:
    return []


def gather(name: str, x: Tensor, index: Tensor, position: Tensor | None, out: Tensor) -> None:
    check_values(name, index, x.shape[1])
    sample = torch.arange(len(index), device=index.device) % max(len(x), 1)
    rows = x[sample[:, None], index]
    if position is not None:
        rows = rows.to(_working(x, position)) + position[index]
    out.copy_(rows.view(out.shape))


def scatter(grad: Tensor, index: Tensor, out: Tensor, accumulate: bool) -> None:
    """out [B, N, D] = the sums of the rows of grad [R, K, D] by sample and token, plus out if accumulate."""
    sample = torch.arange(len(index), device=index.device) % max(len(out), 1)
    sums = out.to(_working(grad)) if accumulate else torch.zeros_like(out, dtype=_working(grad))
    sums.index_put_((sample[:, None].expand_as(index), index), grad.to(sums.dtype), accumulate=True)
    out.copy_(sums)


def assemble(
    context: Tensor,
    context_index: Tensor,
    target_index: Tensor,
    position: Tensor,
    mask_token: Tensor,
    samples: int,
    out: Tensor,
) -> None:
    check_values("context_index", context_index, len(position))
    check_values("target_index", target_index, len(position))
    contexts, seen, _ = context.shape
    by_mask = out.unflatten(0, (-1, contexts // samples, samples))  # [M, E, B, Nc + Np, D]
    working = _working(context, position, mask_token)
    rows = context.to(working) + position[context_index]
    by_mask[..., :seen, :] = rows.unflatten(0, by_mask.shape[1:3]).to(out.dtype)
    targets = mask_token.to(working) + position[target_index]
    by_mask[..., seen:, :] = targets.unflatten(0, (-1, 1, samples)).to(out.dtype)


def assemble_backward(grad: Tensor, grad_context: Tensor, grad_mask: Tensor) -> None:
    contexts, seen, _ = grad_context.shape
    grad = grad.to(_working(grad)).unflatten(0, (-1, contexts))
    grad_context.copy_(grad[:, :, :seen].sum(0))
    grad_mask.copy_(grad[:, :, seen:].sum((0, 1, 2)))


def _working(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
