"""The latent prediction loss as published training code writes it."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,
    "l1": F.l1_loss,
    "mse": F.mse_loss,
}


def latent_loss(
    prediction: Tensor, target: Tensor, masks: Sequence[Tensor], *, kind: str = "smooth_l1"
) -> Tensor:
    """I-JEPA's order of work: normalise every target token, gather each mask, then compare.

    prediction [M*B, K, D], mask-major. target [B, N, D]. masks: M tensors int64 [B, K] of token positions.
    """
    with torch.no_grad():
        normalized = F.layer_norm(target, (target.shape[-1],))
        chosen = torch.cat(
            [normalized.gather(1, mask[..., None].expand(-1, -1, target.shape[-1])) for mask in masks]
        )
    return _ELEMENTWISE[kind](prediction, chosen)
