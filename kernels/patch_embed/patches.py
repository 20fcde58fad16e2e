"""Patches as rows, their gradient, and their registration for `torch.compile`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime import library
from ..runtime.derivative import differentiable_once
from .operation import OPERATION
from .source import source_of, unpatchify

Floats = Sequence[float] | None


def form_rows(
    pixels: Tensor,
    patch_size: Sequence[int],
    mean: Floats,
    std: Floats,
    dtype: torch.dtype,
    implementation: str,
) -> Tensor:
    """`patchify` after its checks."""
    if library.as_node(pixels):
        return torch.ops.jepa_fast.patchify(pixels, patch_size, mean, std, dtype, implementation)
    if pixels.requires_grad and torch.is_grad_enabled():
        return _Patchify.apply(pixels, patch_size, mean, std, dtype, implementation)
    return _patchify(pixels, patch_size, mean, std, dtype, implementation)


def _patchify(
    pixels: Tensor,
    patch_size: Sequence[int],
    mean: Floats,
    std: Floats,
    dtype: torch.dtype,
    implementation: str,
) -> Tensor:
    source = source_of(pixels, patch_size, mean, std)
    return OPERATION.choose(implementation, pixels.device, source, [], dtype).patchify(source, None, dtype)


def _patchify_backward(
    grad: Tensor, shape: Sequence[int], patch_size: Sequence[int], std: Floats, dtype: torch.dtype
) -> Tensor:
    """One copy, by PyTorch: pixels seldom require a gradient."""
    pixels = grad.new_empty(1).expand(*shape)
    source = source_of(pixels, patch_size, None, std)
    assert source.grid is not None
    back = unpatchify(grad.contiguous(), source.grid, shape[1])
    if source.scale is not None:
        back = back * source.scale[:, None, None, None]
    return back.view(*shape).to(dtype)


class _Patchify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        _keep(ctx, arguments, None)
        return _patchify(*arguments)

    @staticmethod
    @differentiable_once("patchify")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _patchify_backward(grad, *ctx.form), None, None, None, None, None


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pixels, patch_size, _, std, _, _ = inputs
    ctx.form = (pixels.shape, patch_size, std, pixels.dtype)


def _rows_shape(pixels: Tensor, patch_size: Sequence[int]) -> tuple[int, int, int]:
    length, values = 1, pixels.shape[1]
    for size, own in zip(pixels.shape[2:], patch_size, strict=True):
        length, values = length * (size // own), values * own
    return pixels.shape[0], length, values


library.define(
    "patchify(Tensor pixels, int[] patch_size, float[]? mean, float[]? std, ScalarType dtype, str implementation)"
    " -> Tensor",
    _patchify,
    lambda pixels, patch_size, mean, std, dtype, _: pixels.new_empty(
        _rows_shape(pixels, patch_size), dtype=dtype
    ),
)
library.define(
    "patchify_backward(Tensor grad, SymInt[] shape, int[] patch_size, float[]? std, ScalarType dtype) -> Tensor",
    _patchify_backward,
    lambda grad, shape, patch_size, std, dtype: grad.new_empty(shape, dtype=dtype),
)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return torch.ops.jepa_fast.patchify_backward(grad, *ctx.form), None, None, None, None, None


torch.library.register_autograd("jepa_fast::patchify", _gradient, setup_context=_keep)
