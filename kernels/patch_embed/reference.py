"""Patch embedding in plain PyTorch: the oracle, and the fallback.

    row[b, n]  = (pixels of patch n of sample b, by channel, frame, line and pixel) * scale_c + shift_c
    out[r, k]  = weight row[r % B, index[r, k]] + bias + position[index[r, k]]

(vision transformer, arXiv 2010.11929, equation 1; tubelets, arXiv 2103.15691, section 3.2), for the kept patches alone,
as masked encoders read no others.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..token_routing.index import check_values
from .source import Source


def why_not(source: Source, tensors: Sequence[Tensor], dtype: torch.dtype) -> list[str]:
    return []


def patchify(source: Source, index: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The kept rows `[R, K, C * t * h * w]`; all of them, `[B, N, ...]`, without an index."""
    pixels, grid = source.pixels, source.grid
    if source.scale is not None and source.shift is not None:
        working = torch.float64 if dtype == torch.float64 else torch.float32
        scale, shift = (x.to(working)[:, None, None, None] for x in (source.scale, source.shift))
        pixels = pixels.to(working) * scale + shift
    pixels = pixels.to(dtype)
    if grid is not None:
        pixels = pixels.unflatten(4, (grid.columns, grid.width)).unflatten(3, (grid.rows, grid.height))
        pixels = pixels.unflatten(2, (grid.frames, grid.tubelet))
        pixels = pixels.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
    if index is None:
        return pixels.contiguous()
    check_values("index", index, source.length)
    sample = torch.arange(len(index), device=index.device) % max(len(pixels), 1)
    return pixels[sample[:, None], index]


def embed(
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    position: Tensor | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """out `[R, K, D]`, and the rows that the backward needs again. weight `[D, C * t * h * w]` has the dtype of the
    product."""
    rows = patchify(source, index, weight.dtype)
    out = F.linear(rows, weight, None if bias is None else bias.to(weight.dtype))
    if position is not None:
        out = out + (position if index is None else position[index])
    return out.to(out_dtype), rows
