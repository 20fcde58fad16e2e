"""Matrix products of linear layers, without autograd, and the parameters that they read.

PyTorch multiplies, but on CPUs with AVX2 and no more: there it takes bfloat16 and float16 at a tenth of the rate of
float32, and float32 on AMD's at 0.7 of what the CPU can; `cpu_products.cpp` takes all three at 0.65 to 0.9 (Zen 2).
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

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


def multiply(a: Tensor, b: Tensor, *, ours: bool = True) -> Tensor:
    """`a @ b` for matrices of one dtype. ours: as in `linear`."""
    if not ours or not _serves(a, b):
        return a @ b
    out = a.new_empty(a.shape[0], b.shape[1])
    _multiply(a, b, None, out)
    return out


class Gradients(NamedTuple):
    """Of a linear layer; None for what was not asked for. weight: contiguous. bias: in float32 or in the type of the
    others."""

    x: Tensor | None
    weight: Tensor
    bias: Tensor | None


def linear_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    wants_x: bool = True,
    wants_bias: bool = True,
    out: Tensor | None = None,
    ours: bool = True,
) -> Gradients:
    """`grad @ weight`, `grad.T @ x` and `grad.sum(0)` for grad `[T, N]`, x `[T, K]` and weight `[N, K]` of one dtype.

    out: contiguous `[T, K]` for the gradient of x, which is formed last: it may be x. ours: as in `linear`.
    """
    if ours and _serves(grad, weight):
        grad, x, weight = (t if t.stride(1) == 1 else t.contiguous() for t in (grad, x, weight))
        if wants_x and out is None:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
        of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        of_bias = weight.new_empty(weight.shape[0], dtype=torch.float32) if wants_bias else None
        threads = torch.get_num_threads()
        native.function("linear_backward")(grad, x, weight, of_weight, of_bias, out, threads)
        return Gradients(out, of_weight, of_bias)
    # For a product narrower than its operands are long, the wide operand is better the transposed one.
    of_weight = (x.t() @ grad).t().contiguous() if grad.shape[1] < x.shape[1] else grad.t() @ x
    of_bias = grad.sum(0) if wants_bias else None
    of_x = None
    if wants_x:
        of_x = grad @ weight if out is None else torch.mm(grad, weight, out=out)
    return Gradients(of_x, of_weight, of_bias)


def _serves(a: Tensor, b: Tensor) -> bool:
    """Whether `cpu_products.cpp` multiplies a, whose last dimension is summed over, with b."""
    return (
        _with_avx2_alone()
        and a.is_cpu
        and a.ndim > 1
        and a.dtype in _TYPES
        and a.dtype == b.dtype
        and a.numel() * b.numel() >= _FEWEST * a.shape[-1]
        and not library.as_node(a, b)
        and os.environ.get(choice.ENVIRONMENT_VARIABLE) in (None, "", "auto", "native")
    )


@functools.cache
def _with_avx2_alone() -> bool:
    """Looked up once, as every product comes by here."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2" and not native.why_not(torch.device("cpu"))


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
