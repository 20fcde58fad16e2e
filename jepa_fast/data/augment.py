"""Random-resized crops, colours and normalisation on the device, for a whole batch at once.

Worker processes decode and draw the numbers; nothing else. A crop is two matrix products: every output row is a
weighted sum of the rows in its box, every output column likewise. The weights are the triangle filter that Pillow's
antialiased bilinear resize uses, cut at the box, so the values are Pillow's before it rounds them.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_fast.data.crops import IMAGENET_MEAN, IMAGENET_STD, random_crop_box

# What a view is made with, one float32 each: see `View.draw`.
PARAMETERS = ("left", "top", "right", "bottom", "flip", "brightness", "contrast", "saturation", "hue", "gray")
_COLOURS = (1.0, 1.0, 1.0, 0.0, 0.0)  # brightness to gray of an untouched picture

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class View:
    """A kind of crop: how many of it each sample has, and within which bounds they are drawn.

    size: side in pixels. scale, aspect_ratio: as of `random_crop_box`. flip: probability of mirroring.
    colour: probability of changing brightness, contrast and saturation by factors within 1 +- `strength`, and the hue
    by +- strength / 4 of a turn. gray: probability of losing the colours.
    """

    size: int
    number: int = 1
    scale: tuple[float, float] = (0.3, 1.0)
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    colour: float = 0.0
    strength: float = 0.4
    gray: float = 0.0

    def draw(self, size: tuple[int, int], rng: random.Random) -> list[tuple[float, ...]]:
        """PARAMETERS of every view of one picture of `size` (width, height)."""
        drawn = []
        for _ in range(self.number):
            box = random_crop_box(size, rng, scale=self.scale, aspect_ratio=self.aspect_ratio)
            flip = float(rng.random() < self.flip) if self.flip else 0.0
            colours = list(_COLOURS)
            if self.colour and rng.random() < self.colour:
                colours[:3] = [1 + self.strength * (2 * rng.random() - 1) for _ in range(3)]
                colours[3] = self.strength / 4 * (2 * rng.random() - 1)
            if self.gray and rng.random() < self.gray:
                colours[4] = 1.0
            drawn.append((*map(float, box), flip, *colours))
        return drawn

    @property
    def recolours(self) -> bool:
        return self.colour > 0 or self.gray > 0


def central_view(size: tuple[int, int]) -> tuple[float, ...]:
    """PARAMETERS of the largest central square of a picture of `size` (width, height), for evaluation."""
    width, height = size
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return (left, top, left + side, top + side, 0.0, *_COLOURS)


def views(pixels: Tensor, parameters: Tensor, size: int, *, recolour: bool = True) -> Tensor:
    """Views of pictures or clips; all frames of a clip are treated alike.

    pixels: uint8 `[B, T, 3, H, W]`; pictures smaller than that lie in the upper left corner, and boxes inside of them.
    parameters: float32 `[B, V, 10]` on the same device, see PARAMETERS; boxes in pixels.

    Returns float32 `[B, V, T, 3, size, size]`: (value / 255 - mean) / std with the ImageNet statistics.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 5 or pixels.shape[2] != 3:
        raise ValueError(f"pixels: expected uint8 [B, T, 3, H, W], got {pixels.dtype} {list(pixels.shape)}")
    if parameters.ndim != 3 or len(parameters) != len(pixels) or parameters.shape[2] != len(PARAMETERS):
        expected = f"[{len(pixels)}, V, {len(PARAMETERS)}]"
        raise ValueError(f"parameters: expected {expected}, got {list(parameters.shape)}")
    batch, frames, channels, height, width = pixels.shape
    left, top, right, bottom, flip, *_ = parameters.unbind(2)
    rows = resample_weights(top, bottom, height, size)  # [B, V, size, H]
    columns = resample_weights(left, right, width, size)  # [B, V, size, W]
    columns = torch.where(flip[:, :, None, None] > 0, columns.flip(2), columns)
    whole = pixels.to(torch.float32).flatten(1, 2)  # [B, T * 3, H, W]
    number = parameters.shape[1]
    squeezed = rows.flatten(1, 2)[:, None] @ whole  # [B, T * 3, V * size, W]
    squeezed = squeezed.unflatten(2, (number, size))
    crops = squeezed @ columns.transpose(2, 3)[:, None]  # [B, T * 3, V, size, size]
    crops = crops.transpose(1, 2).reshape(batch, number, frames, channels, size, size) / 255
    if recolour:
        crops = _recolour(crops, parameters)
    constants = _constants(pixels.device)
    return crops.sub_(constants.mean).div_(constants.std)


def resample_weights(low: Tensor, high: Tensor, length: int, size: int) -> Tensor:
    """Weights `[..., size, length]` that resample the interval `low` to `high` of `length` pixels to `size` pixels.

    Triangle filter of half width max(1, interval / size) about the centre of each output pixel, over the pixels of the
    interval alone; the weights of an output pixel sum to one.
    """
    low, high = low[..., None, None], high[..., None, None]
    step = (high - low) / size
    centre = low + (torch.arange(size, device=low.device).view(size, 1) + 0.5) * step
    pixel = torch.arange(length, device=low.device) + 0.5
    weights = (1 - (pixel - centre).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel > low) & (pixel < high))
    return weights / weights.sum(-1, keepdim=True)


class _Constants(NamedTuple):
    mean: Tensor
    std: Tensor
    luma: Tensor
    to_yiq: Tensor
    from_yiq: Tensor


@functools.cache
def _constants(device: torch.device) -> _Constants:
    """Brought to the device once: a copy from pageable memory is waited for."""
    mean, std, luma = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD, _LUMA))
    to_yiq = torch.tensor(_RGB_TO_YIQ, dtype=torch.float64)
    parts = (mean, std, luma, to_yiq, torch.linalg.inv(to_yiq))
    return _Constants(*(part.to(device) for part in parts))


def _recolour(crops: Tensor, parameters: Tensor) -> Tensor:
    """Brightness, contrast about the mean luminance, saturation, hue, gray, in this order; values stay in [0, 1]."""
    brightness, contrast, saturation, hue, gray = parameters[:, :, 5:, None, None, None, None].unbind(2)
    constants = _constants(crops.device)
    luma = constants.luma
    crops = (crops * brightness).clamp_(0, 1)
    mean = (crops * luma).sum(3, keepdim=True).mean((2, 4, 5), keepdim=True)
    crops = torch.lerp(mean, crops, contrast).clamp_(0, 1)
    lightness = (crops * luma).sum(3, keepdim=True)
    crops = torch.lerp(lightness, crops, saturation * (1 - gray)).clamp_(0, 1)
    # A turn of the two chrominance axes; the luminance stays.
    turn = (2 * torch.pi * hue).flatten(2).double()  # [B, V, 1]
    cosine, sine, zero, one = turn.cos(), turn.sin(), torch.zeros_like(turn), torch.ones_like(turn)
    rotation = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], -1).unflatten(
        -1, (3, 3)
    )
    matrix = (constants.from_yiq @ rotation @ constants.to_yiq).float()  # [B, V, 1, 3, 3]
    return torch.einsum("bvtij,bvtjhw->bvtihw", matrix.expand(-1, -1, crops.shape[2], -1, -1), crops).clamp_(
        0, 1
    )


def least_edge(kinds: Sequence[View]) -> float:
    """The short side of a picture from which no crop has to be enlarged."""

    def share(kind: View) -> float:
        """Of a picture's short side, the shortest edge of a crop."""
        low, high = kind.aspect_ratio
        return (kind.scale[0] * min(low, 1 / high)) ** 0.5

    return max(kind.size / share(kind) for kind in kinds)
