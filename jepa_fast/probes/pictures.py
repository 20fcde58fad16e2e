"""Features as colours: the first three principal components of the tokens of some pictures."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jepa_fast.data import IMAGENET_MEAN, IMAGENET_STD
from jepa_fast.probes.heads import principal_components

SIDE = 128  # of a picture in the sheet, in pixels


def feature_sheet(pixels: Tensor, tokens: Tensor, path: Path) -> None:
    """Writes a PNG: pictures above, their features below as red, green and blue.

    pixels: normalised `[n, 3, size, size]`. tokens: `[n, rows * columns, dim]` of square grids.
    """
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise ValueError(f"tokens: expected a square grid, got {tokens.shape[1]}")
    rows = tokens.float().flatten(0, 1)
    mean, directions = principal_components(rows, 3)
    values = (rows - mean) @ directions
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    colours = ((values - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    colours = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1])).view(len(tokens), side, side, 3)
    shift, scale = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    pictures = (pixels * scale + shift).clamp(0, 1).permute(0, 2, 3, 1)
    lines = [np.concatenate([_scaled(picture) for picture in line], axis=1) for line in (pictures, colours)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(lines)).save(path, format="PNG", optimize=True)


def _scaled(picture: Tensor) -> np.ndarray:
    image = Image.fromarray((picture * 255).round().byte().numpy())
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.NEAREST))
