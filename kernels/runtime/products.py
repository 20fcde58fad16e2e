"""Matrix products of linear layers, without autograd, and the parameters that they read.

PyTorch multiplies, but on CPUs with AVX2 and no more: there it takes bfloat16 and float16 at a tenth of the rate of
float32, and float32 on AMD's at 0.7 of what the CPU can; `cpu_products.cpp` takes all three at 0.85 to 0.9 (Zen 2).
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from . import choice, library, native

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_FEWEST = 1 << 16  # multiply-adds below which a call costs more than it gains


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, ours: bool = True) -> Tensor:
    """`x @ weight.T + bias` for tensors of one dtype. ours: False leaves it to `F.linear`.

    `F.linear` on the CPU first writes the bias to the whole output and then adds the product to it. oneDNN adds it to
    each tile of the product in registers; in bfloat16, where the product itself is fast, a layer that is wider at its
    output takes a quarter less time that way.
    """
    if ours and _serves(x, weight):
        out = x.new_empty((*x.shape[:-1], weight.shape[0]))
        _multiply(x.flatten(0, -2), weight.t(), bias, out.flatten(0, -2))
        return out
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.numel() and _onednn_has_bfloat16():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], None)
    return F.linear(x, weight, bias)


def multiply(a: Tensor, b: Tensor, *, out: Tensor | None = None, ours: bool = True) -> Tensor:
    """`a @ b` for tensors of one dtype, b of two dimensions. out: contiguous. ours: as in `linear`."""
    if not ours or not _serves(a, b):
        return torch.matmul(a, b) if out is None else torch.matmul(a, b, out=out)
    if out is None:
        out = a.new_empty((*a.shape[:-1], b.shape[1]))
    _multiply(a.flatten(0, -2), b, None, out.flatten(0, -2))
    return out


def weight_gradient(grad: Tensor, x: Tensor, *, ours: bool = True) -> Tensor:
    """`grad.T @ x`, `[N, K]` from `[T, N]` and `[T, K]`. ours: as in `linear`."""
    if ours and _serves(grad.t(), x):
        return multiply(grad.t(), x)
    # For a product narrower than its operands are long, the wide operand is better the transposed one.
    return (x.t() @ grad).t() if grad.shape[1] < x.shape[1] else grad.t() @ x


def _serves(a: Tensor, b: Tensor) -> bool:
    """Whether `cpu_products.cpp` multiplies a, whose last dimension is summed over, with b."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX2"
        and not library.as_node(a, b)
        and a.dtype in _TYPES
        and a.dtype == b.dtype
        and a.numel() * b.numel() >= _FEWEST * a.shape[-1]
        and os.environ.get(choice.ENVIRONMENT_VARIABLE) in (None, "", "auto", "native")
        and not native.why_not(a.device)
    )


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor) -> None:
    a, b = (x if 1 in x.stride() else x.contiguous() for x in (a, b))
    bias = None if bias is None else bias.contiguous()
    native.function("product")(a, b, bias, out, torch.get_num_threads())


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
