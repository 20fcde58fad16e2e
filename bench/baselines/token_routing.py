"""Token routing as published training code writes it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gather_masks(x: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Tokens of `x [B, N, D]` for every mask `[B, K]`, one after another; the index is repeated over D."""
    return torch.cat([x.gather(1, mask[..., None].repeat(1, 1, x.shape[-1])) for mask in masks])


def ijepa_predictor_tokens(
    context: Tensor,
    context_masks: Sequence[Tensor],
    target_masks: Sequence[Tensor],
    position: Tensor,
    mask_token: Tensor,
) -> Tensor:
    """I-JEPA's order of work: the table repeated for every sample and gathered, the mask token repeated for every
    target, the context repeated for every mask, then joined.

    context [E*B, Nc, D], mask-major. context_masks, target_masks: E and M tensors int64 [B, K]. position [1, N, D].
    """
    table = position.repeat(len(context) // len(context_masks), 1, 1)
    x = context + gather_masks(table, context_masks)
    targets = gather_masks(table, [mask for mask in target_masks for _ in context_masks])
    targets = mask_token.repeat(len(targets), targets.shape[1], 1) + targets
    return torch.cat([x.repeat(len(target_masks), 1, 1), targets], dim=1)


def indexed_predictor_tokens(
    context: Tensor,
    context_index: Tensor,
    target_index: Tensor,
    position: Tensor,
    mask_token: Tensor,
    num_context: int = 1,
) -> Tensor:
    """The same by advanced indexing and views: nothing is repeated before the sums, only before the last copy."""
    batch = len(context) // num_context
    x = context + position[context_index]
    targets = (mask_token + position[target_index]).unflatten(0, (-1, 1, batch))
    targets = targets.expand(-1, num_context, -1, -1, -1).flatten(1, 2)
    return torch.cat([x.expand(len(targets), -1, -1, -1), targets], dim=2).flatten(0, 1)
