"""Patch embedding as published training code writes it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.bench.baselines.token_routing import gather_masks


def embed_then_gather(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor,
    masks: Sequence[Tensor] | None = None,
    *,
    position: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """A convolution over every patch, the positions added to all of them, and then the gather of what masks keep.

    masks: tensors int64 [B, K]; their tokens are concatenated on the batch. mean, std: of uint8 pixels, which are first
    normalised as a loader does.
    """
    if mean is not None and std is not None:
        shape = (-1, *(1 for _ in pixels.shape[2:]))
        centre, spread = (torch.tensor(x, device=pixels.device).view(shape) for x in (mean, std))
        pixels = (pixels.float() / 255 - centre) / spread
    convolution = F.conv2d if pixels.ndim == 4 else F.conv3d
    x = convolution(pixels.to(weight.dtype), weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)
    if position is not None:
        x = x + position
    return x if masks is None else gather_masks(x, masks)
