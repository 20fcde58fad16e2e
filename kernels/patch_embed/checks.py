"""What is true of the arguments of every implementation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..token_routing.index import check_form

IMAGE, VIDEO, ROWS = 4, 5, 3  # dimensions of pixels


def check_pixels(
    pixels: Tensor, patch_size: Sequence[int], mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    """Raise unless images or videos can be cut into patches of that size, two or three integers."""
    if pixels.ndim not in (IMAGE, VIDEO):
        raise ValueError(f"pixels: expected [B, C, H, W] or [B, C, T, H, W], got {list(pixels.shape)}")
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise TypeError(f"pixels: expected uint8 or a floating-point dtype, got {pixels.dtype}")
    form = "[h, w]" if pixels.ndim == IMAGE else "[t, h, w]"
    if len(patch_size) != pixels.ndim - 2 or any(size < 1 for size in patch_size):
        raise ValueError(f"patch_size: expected {form} of at least 1, got {list(patch_size)}")
    if any(size % own for size, own in zip(pixels.shape[2:], patch_size, strict=True)):
        raise ValueError(
            f"pixels: expected sizes that {list(patch_size)} divides, got {list(pixels.shape[2:])}"
        )
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != pixels.shape[1]:
            raise ValueError(f"{name}: expected C = {pixels.shape[1]} values, got {len(values)}")
    if std is not None and not all(value > 0 for value in std):
        raise ValueError(f"std: expected values above 0, got {list(std)}")


def check_embedding(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    position: Tensor | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    length: int,
) -> None:
    """Raise unless everything fits, `pixels` to `weight` first. length: N."""
    if pixels.ndim == ROWS:
        if not pixels.is_floating_point():
            raise TypeError(f"pixels: expected rows of a floating-point dtype, got {pixels.dtype}")
        values = weight[0].numel() if len(weight) else 0
        if weight.ndim < 2 or values != pixels.shape[2]:
            raise ValueError(
                f"weight: expected {pixels.shape[2]} values for each output, as a row of pixels has, "
                f"got {list(weight.shape)}"
            )
        if mean is not None or std is not None:
            raise ValueError("mean, std: expected None for rows, which patchify has normalised")
    elif weight.ndim != pixels.ndim or weight.shape[1] != pixels.shape[1]:
        form = "D, C, p, p" if pixels.ndim == IMAGE else "D, C, t, p, p"
        raise ValueError(
            f"weight: expected [{form}] with C = {pixels.shape[1]} for pixels {list(pixels.shape)}, "
            f"got {list(weight.shape)}"
        )
    features = weight.shape[0]
    if not weight.is_floating_point():
        raise TypeError(f"weight: expected a floating-point dtype, got {weight.dtype}")
    if index is not None:
        check_form("index", index, pixels.shape[0], pixels.device)
    for name, tensor, shape in (("bias", bias, [features]), ("position", position, [length, features])):
        if tensor is not None and list(tensor.shape) != shape:
            raise ValueError(f"{name}: expected {shape}, got {list(tensor.shape)}")
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {tensor.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias), ("position", position)):
        if tensor is not None and tensor.device != pixels.device:
            raise ValueError(f"{name}: expected device {pixels.device} of pixels, got {tensor.device}")
