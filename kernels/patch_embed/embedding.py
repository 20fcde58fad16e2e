"""The embedding of kept patches, its gradients, and its registration for `torch.compile`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime import library
from ..runtime.derivative import differentiable_once
from ..runtime.products import linear_gradients, multiply
from ..token_routing.gathers import scatter
from .operation import OPERATION, as_told
from .source import Source, source_of

Floats = Sequence[float] | None


class Form(NamedTuple):
    """What a call computes, apart from its tensors, in the types that a compiled graph carries."""

    mean: Floats
    std: Floats
    dtype: torch.dtype  # of the product
    implementation: str


def embed_tokens(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    position: Tensor | None,
    form: Form,
    out_dtype: torch.dtype,
) -> Tensor:
    """`masked_patch_embed` after its checks; pixels require no gradient, rows may."""
    tensors = (pixels, weight, bias, index, position)
    if library.as_node(pixels):
        return torch.ops.jepa_fast.patch_embed(*tensors, *form, out_dtype)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _PatchEmbed.apply(*tensors, form, out_dtype)
    return _embed(*tensors, form, out_dtype)[0]


def _embed(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    position: Tensor | None,
    form: Form,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    source = source_of(pixels, weight.shape[2:], form.mean, form.std)
    given = [t for t in (weight, bias, position) if t is not None]
    module = OPERATION.choose(form.implementation, pixels.device, source, given, form.dtype)
    index = None if index is None else index.contiguous()
    with as_told(pixels):
        flat = weight.flatten(1).to(form.dtype).contiguous()
        return module.embed(source, flat, bias, index, position, out_dtype)


class _Gradients(NamedTuple):
    """Of rows that were given, weight, bias and position; None where it was not asked for."""

    rows: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    position: Tensor | None


def _gradients(
    grad: Tensor,
    pixels: Tensor,
    rows: Tensor | None,
    weight: Tensor,
    index: Tensor | None,
    form: Form,
    wanted: Sequence[bool],  # of rows, weight, bias, position
) -> _Gradients:
    """rows: what `embed` returned beside its result. Gradients of bias and position are in float32 or wider."""
    source = source_of(pixels, weight.shape[2:], form.mean, form.std)
    index = None if index is None else index.contiguous()
    flat = grad.flatten(0, 1)
    working = torch.promote_types(grad.dtype, torch.float32)
    of_rows = of_weight = of_bias = of_position = None
    with as_told(pixels):
        upstream = flat.to(form.dtype)
        matrix = weight.flatten(1).to(form.dtype)
        if wanted[1]:
            if rows is None:
                rows = _rows_again(source, weight, index, form)
            flat_rows = rows.flatten(0, 1)
            of_rows, of_weight, _ = linear_gradients(
                upstream, flat_rows, matrix, wants_x=wanted[0], wants_bias=False
            )
            of_weight = of_weight.to(weight.dtype).view(weight.shape)
        elif wanted[0]:
            of_rows = multiply(upstream, matrix)
        if of_rows is not None:
            of_rows = _by_token(of_rows, source, index, pixels.dtype, form.implementation)
        if wanted[2]:
            of_bias = flat.sum(0, dtype=working)
        if wanted[3]:
            of_position = _by_token(flat, source, index, working, form.implementation).sum(0)
    return _Gradients(of_rows, of_weight, of_bias, of_position)


def _rows_again(source: Source, weight: Tensor, index: Tensor | None, form: Form) -> Tensor:
    module = OPERATION.choose(form.implementation, source.pixels.device, source, [weight], form.dtype)
    return module.patchify(source, index, form.dtype)


def _by_token(
    rows: Tensor, source: Source, index: Tensor | None, dtype: torch.dtype, implementation: str
) -> Tensor:
    """Sums of rows `[R * K, ...]` for every token, `[B, N, ...]`."""
    samples = source.pixels.shape[0]
    if index is None:
        return rows.view(samples, source.length, rows.shape[1]).to(dtype)
    return scatter(rows, [index], samples, source.length, dtype, implementation)


class _PatchEmbed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pixels: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        index: Tensor | None,
        position: Tensor | None,
        form: Form,
        out_dtype: torch.dtype,
    ) -> Tensor:
        out, rows = _embed(pixels, weight, bias, index, position, form, out_dtype)
        ctx.save_for_backward(pixels, rows, weight, index)
        ctx.form, ctx.dtypes = form, [None if t is None else t.dtype for t in (bias, position)]
        return out

    @staticmethod
    @differentiable_once("patch_embed")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        asked = ctx.needs_input_grad
        pixels, rows, weight, index = ctx.saved_tensors
        found = _gradients(grad, pixels, rows, weight, index, ctx.form, (*asked[:3], asked[4]))
        last = [t if t is None else t.to(d) for t, d in zip(found[2:], ctx.dtypes, strict=True)]
        return found.rows, found.weight, last[0], None, last[1], None, None


def _registered(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    position: Tensor | None,
    mean: Floats,
    std: Floats,
    dtype: torch.dtype,
    implementation: str,
    out_dtype: torch.dtype,
) -> Tensor:
    form = Form(mean, std, dtype, implementation)
    return _embed(pixels, weight, bias, index, position, form, out_dtype)[0]


def _registered_backward(
    grad: Tensor,
    pixels: Tensor,
    weight: Tensor,
    index: Tensor | None,
    mean: Floats,
    std: Floats,
    dtype: torch.dtype,
    implementation: str,
    wanted: Sequence[bool],
    length: int,
) -> tuple[Tensor, ...]:
    form = Form(mean, std, dtype, implementation)
    found = _gradients(grad, pixels, None, weight, index, form, wanted)
    # What was not asked for is empty: an op returns tensors.
    return tuple(grad.new_empty(0) if t is None else t for t in found)


def _fake(
    pixels: Tensor, weight: Tensor, bias: Any, index: Tensor | None, position: Any, *rest: Any
) -> Tensor:
    shape = (pixels.shape[0], length_of(pixels, weight)) if index is None else tuple(index.shape)
    return pixels.new_empty((*shape, weight.shape[0]), dtype=rest[-1])


def _fake_backward(
    grad: Tensor, pixels: Tensor, weight: Tensor, index: Any, *rest: Any
) -> tuple[Tensor, ...]:
    *_, wanted, length = rest
    working = torch.promote_types(grad.dtype, torch.float32)
    shapes = (pixels.shape, weight.shape, weight.shape[:1], (length, weight.shape[0]))
    dtypes = (pixels.dtype, weight.dtype, working, working)
    return tuple(
        grad.new_empty(shape, dtype=dtype) if asked else grad.new_empty(0)
        for shape, dtype, asked in zip(shapes, dtypes, wanted, strict=True)
    )


def length_of(pixels: Tensor, weight: Tensor) -> int:
    """N, from shapes alone."""
    if pixels.ndim == 3:
        return pixels.shape[1]
    length = 1
    for size, own in zip(pixels.shape[2:], weight.shape[2:], strict=True):
        length *= size // own
    return length


_FORM = "float[]? mean, float[]? std, ScalarType dtype, str implementation"

library.define(
    "patch_embed(Tensor pixels, Tensor weight, Tensor? bias, Tensor? index, Tensor? position,"
    f" {_FORM}, ScalarType out_dtype) -> Tensor",
    _registered,
    _fake,
)
library.define(
    f"patch_embed_backward(Tensor grad, Tensor pixels, Tensor weight, Tensor? index, {_FORM}, bool[] wanted,"
    " SymInt length) -> (Tensor, Tensor, Tensor, Tensor)",
    _registered_backward,
    _fake_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pixels, weight, bias, index, position, *form, _ = inputs
    ctx.save_for_backward(pixels, weight, index)
    ctx.form, ctx.length = form, length_of(pixels, weight)
    ctx.dtypes = [None if t is None else t.dtype for t in (bias, position)]


def _registered_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    asked = ctx.needs_input_grad
    wanted = [*asked[:3], asked[4]]
    found = torch.ops.jepa_fast.patch_embed_backward(grad, *ctx.saved_tensors, *ctx.form, wanted, ctx.length)
    rows, weight, bias, position = (t if w else None for t, w in zip(found, wanted, strict=True))
    bias, position = (t if t is None else t.to(d) for t, d in zip((bias, position), ctx.dtypes, strict=True))
    return rows, weight, bias, None, position, None, None, None, None, None


torch.library.register_autograd("jepa_fast::patch_embed", _registered_gradients, setup_context=_keep)
