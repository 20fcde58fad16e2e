"""Matrix products, by PyTorch, and the parameters that they read."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` for tensors of one dtype, without autograd.

    `F.linear` on the CPU first writes the bias to the whole output and then adds the product to it. oneDNN adds it to
    each tile of the product in registers; in bfloat16, where the product itself is fast, a layer that is wider at its
    output takes a quarter less time that way.
    """
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.numel() and _onednn_has_bfloat16():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], None)
    return F.linear(x, weight, bias)


@functools.cache
def _onednn_has_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


_copy_of: Callable[[Tensor], Tensor] | None = None


@contextmanager
def using_copies(copy_of: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Linear layers take `copy_of(parameter)` where they would cast a parameter; None leaves the cast.

    The copies must be equal to such casts while the context lasts.
    """
    global _copy_of
    before, _copy_of = _copy_of, copy_of
    try:
        yield
    finally:
        _copy_of = before


def cast_parameter(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """`parameter` in the dtype of a matrix product, without autograd."""
    if parameter.dtype == dtype:
        return parameter
    copy = None if _copy_of is None else _copy_of(parameter)
    return copy if copy is not None and copy.dtype == dtype else parameter.to(dtype)
