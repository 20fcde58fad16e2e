"""The errors of `layer_norm` and `add_layer_norm`."""

import math

import torch
from torch import Tensor


def check(stream: Tensor, name: str, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> None:
    """name: of `stream`, the tensor that is normalised, in the signature that was called."""
    if stream.ndim == 0 or stream.shape[-1] == 0:
        raise ValueError(f"{name}: expected [..., D] with D of at least 1, got {list(stream.shape)}")
    if not stream.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {stream.dtype}")
    check_vectors(stream, name, weight=weight, bias=bias)
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps: expected a finite number of at least 0, got {eps}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point dtype or None, got {dtype}")


def check_branch(
    x: Tensor,
    residual: Tensor,
    update_bias: Tensor | None,
    layer_scale: Tensor | None,
    drop_path: Tensor | None,
) -> None:
    if x.shape != residual.shape:
        raise ValueError(f"x: expected {list(residual.shape)} of residual, got {list(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point dtype, got {x.dtype}")
    if x.device != residual.device:
        raise ValueError(f"x: expected device {residual.device} of residual, got {x.device}")
    check_vectors(residual, "residual", update_bias=update_bias, layer_scale=layer_scale)
    if drop_path is None:
        return
    if residual.ndim < 2:
        raise ValueError(
            f"drop_path: expected None for a residual without a batch, got {list(drop_path.shape)}"
        )
    if drop_path.shape != residual.shape[:1]:
        raise ValueError(
            f"drop_path: expected [{residual.shape[0]}], one factor per sample, got {list(drop_path.shape)}"
        )
    if not drop_path.is_floating_point():
        raise TypeError(f"drop_path: expected a floating-point dtype, got {drop_path.dtype}")
    if drop_path.device != residual.device:
        raise ValueError(f"drop_path: expected device {residual.device} of residual, got {drop_path.device}")
    if drop_path.requires_grad:
        raise ValueError("drop_path: expected no gradient, as it is drawn; got a tensor that requires one")


def check_vectors(stream: Tensor, name: str, **vectors: Tensor | None) -> None:
    for vector_name, vector in vectors.items():
        if vector is None:
            continue
        if vector.shape != stream.shape[-1:]:
            raise ValueError(
                f"{vector_name}: expected [{stream.shape[-1]}] as D of {name}, got {list(vector.shape)}"
            )
        if not vector.is_floating_point():
            raise TypeError(f"{vector_name}: expected a floating-point dtype, got {vector.dtype}")
        if vector.device != stream.device:
            raise ValueError(f"{vector_name}: expected device {stream.device} of {name}, got {vector.device}")
