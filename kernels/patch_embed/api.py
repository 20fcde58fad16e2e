"""Patch embedding of the tokens that a mask keeps, and of no others."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime.choice import Explanation
from .checks import IMAGE, ROWS, VIDEO, check_embedding, check_pixels
from .embedding import Form, embed_tokens, length_of
from .operation import OPERATION, compute_dtype
from .patches import form_rows
from .source import source_of

__all__ = ["masked_patch_embed", "patchify"]


def masked_patch_embed(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None = None,
    *,
    position: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> Tensor:
    """A linear map of the patches that `index` keeps, with their position embeddings (vision transformer, arXiv
    2010.11929, equation 1; tubelets, arXiv 2103.15691, section 3.2):

        out[r, k] = weight patch[r % B, index[r, k]] + bias + position[index[r, k]]

    Patches that no mask keeps are neither read nor computed.

    pixels: images `[B, C, H, W]`, videos `[B, C, T, H, W]`, uint8 or floating-point, of which only W has to be
        contiguous; or the rows `[B, N, C * p * p]` that `patchify` made of them, so that several networks (the teacher
        on all tokens, the student on its contexts) share one pass over the pixels.
    weight: `[D, C, p, p]` for images, `[D, C, t, p, p]` for videos, as a convolution of that kernel and stride has it.
    bias: `[D]`, or None.
    index: int64 `[E * B, K]` of E masks for each sample, mask-major: row e * B + b keeps patches of sample b, counted
        by frame, row and column. None keeps all, `[B, N]`. Wrong values raise on the CPU; on CUDA their rows are NaN,
        and `JEPA_FAST_CHECK=1` asserts on the device.
    position: `[N, D]`, added by token, or None.
    mean, std: C values each, or None. Pixels become (x - mean) / std, uint8 pixels (x / 255 - mean) / std (x / 255 if
        both are None), in float32 as they are read.
    dtype: of the product; None is autocast's where it is on, else that of weight.
    implementation: "auto", "triton", "native" or "reference".

    Returns contiguous `[E * B, K, D]` in the type to which dtype and position promote, so that a bfloat16 product with
    a float32 table begins a float32 residual stream. Accumulation is in float32; float32, bfloat16 and float16 in the
    kernels, float64 in the reference. Differentiable once in weight, bias, position, rows, and floating-point pixels.
    Sums over tokens are in a fixed order; the gradient of the weight is as deterministic as PyTorch's product.

    Raises ValueError for shapes or index values that do not fit, TypeError for dtypes, RuntimeError if a requested
    implementation cannot serve.
    """
    _check(pixels, weight, bias, index, position, mean, std)
    product = compute_dtype(pixels.device, weight.dtype) if dtype is None else dtype
    out_dtype = product if position is None else torch.promote_types(product, position.dtype)
    if pixels.ndim != ROWS and pixels.requires_grad and torch.is_grad_enabled():
        pixels = form_rows(pixels, weight.shape[2:], mean, std, product, implementation)
        mean = std = None
    form = Form(mean, std, product, implementation)
    return embed_tokens(pixels, weight, bias, index, position, form, out_dtype)


def patchify(
    pixels: Tensor,
    patch_size: int | Sequence[int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> Tensor:
    """The patches of images or videos as rows, cast and normalised in the one pass that reads the pixels.

    patch_size: of images (h, w), or one integer for both; of videos (t, h, w).
    dtype: of the result; None is autocast's where it is on, else that of floating-point pixels, else float32.
    pixels, mean, std, implementation: as in `masked_patch_embed`, which takes the result in place of pixels.

    Returns contiguous `[B, N, C * h * w]` or `[B, N, C * t * h * w]`: patches by frame, row and column, values by
    channel, frame, line and pixel, which is the order of a convolution's weight. Differentiable once in floating-point
    pixels. Raises as `masked_patch_embed` does.
    """
    sizes = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    check_pixels(pixels, sizes, mean, std)
    if dtype is None:
        dtype = compute_dtype(pixels.device, pixels.dtype if pixels.is_floating_point() else torch.float32)
    return form_rows(pixels, sizes, mean, std, dtype, implementation)


def _check(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    position: Tensor | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    """Raises what `masked_patch_embed` raises."""
    if pixels.ndim not in (ROWS, IMAGE, VIDEO):
        raise ValueError(
            f"pixels: expected [B, C, H, W], [B, C, T, H, W] or rows [B, N, values], got {list(pixels.shape)}"
        )
    if pixels.ndim == weight.ndim:
        check_pixels(pixels, weight.shape[2:], mean, std)
    length = length_of(pixels, weight) if pixels.ndim in (ROWS, weight.ndim) else 0
    check_embedding(pixels, weight, bias, index, position, mean, std, length)


def explain(pixels: Tensor, weight: Any, *rest: Any, **options: Any) -> Explanation:
    """What `masked_patch_embed`, or `patchify` with a patch size, would choose for these arguments, and why the others
    are refused."""
    mean, std, dtype = (options.get(name) for name in ("mean", "std", "dtype"))
    if not isinstance(weight, Tensor):
        sizes = (weight, weight) if isinstance(weight, int) else tuple(weight)
        check_pixels(pixels, sizes, mean, std)
        kept = pixels.dtype if pixels.is_floating_point() else torch.float32
        source = source_of(pixels, sizes, mean, std)
        return OPERATION.explain(pixels.device, source, [], dtype or compute_dtype(pixels.device, kept))
    named = dict(zip(("bias", "index"), rest, strict=False)) | options
    bias, position = named.get("bias"), named.get("position")
    _check(pixels, weight, bias, named.get("index"), position, mean, std)
    given = [t for t in (weight, bias, position) if t is not None]
    source = source_of(pixels, weight.shape[2:], mean, std)
    return OPERATION.explain(
        pixels.device, source, given, dtype or compute_dtype(pixels.device, weight.dtype)
    )


def example_inputs(device: torch.device) -> tuple[Any, ...]:
    """Small arguments of `masked_patch_embed`, for `jepa-fast doctor`."""
    index = torch.arange(2, device=device).expand(2, 2)
    weight = torch.zeros(16, 3, 8, 8, device=device)
    return torch.zeros(2, 3, 16, 16, device=device), weight, torch.zeros(16, device=device), index
