"""LayerNorm, and the residual add that comes before it in a pre-norm transformer, in one pass each way."""

import math
from typing import Any

import torch
from torch import Tensor

from ..runtime import library
from ..runtime.choice import Explanation, Operation
from ..runtime.derivative import differentiable_once
from .branch import Branch
from .check import check, check_branch

__all__ = ["add_layer_norm", "layer_norm"]

OPERATION = Operation("layer_norm", __package__, triton="triton_layer_norm", native="native")


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> Tensor:
    """LayerNorm over the last dimension (arXiv 1607.06450, eq. 4): x is read once, the result written once.

    x: [..., D]; float32, bfloat16 or float16 in the kernels, float64 in the reference.
    weight, bias: [D], floating point. float32 parameters serve activations of any dtype as they are.
    eps: added to the variance, at least 0.
    dtype: of the result. None is autocast's dtype where autocast is on for the device (but for float64, which autocast
        leaves alone), else that of x.
    implementation: "auto", "triton", "native" or "reference".

    Returns a contiguous [..., D]. Statistics and sums are in float32. Differentiable once in x, weight and bias;
    gradients have the dtypes of their tensors. Forward and backward are deterministic; the kernels' gradients of
    weight and bias do not depend on the number of threads. What is not finite in a row spoils that row. The backward
    keeps x, and two floats per row.

    Raises ValueError for shapes or settings that do not fit, TypeError for dtypes, RuntimeError if a requested
    implementation cannot serve.
    """
    dtype = _result_dtype(x, dtype)
    check(x, "x", weight, bias, eps, dtype)
    tensors = (x, None, weight, bias, None, None, None)
    if library.as_node(tensors[0]):
        return torch.ops.jepa_fast.layer_norm_forward(*tensors, eps, dtype, implementation)[0]
    if _wants_gradient(*tensors):
        return _LayerNorm.apply(*tensors, eps, dtype, implementation)
    return _forward(*tensors, eps, dtype, implementation)[0]


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    update_bias: Tensor | None = None,
    layer_scale: Tensor | None = None,
    drop_path: Tensor | None = None,
    dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The residual add and the LayerNorm after it, each value read once and written once:

        new_residual = residual + drop_path[b] * layer_scale * (x + update_bias)
        normalized   = LayerNorm(new_residual)                                     (arXiv 1607.06450, eq. 4)

    x: [B, ..., D], what attention or MLP return. residual: the same shape; its dtype may be another.
    weight, bias: [D], of the LayerNorm. update_bias, layer_scale: [D] or None.
    drop_path: [B] or None; the factor of each sample, 0 where its branch is dropped and 1 / keep where not. It is
        drawn by the caller and not differentiated.
    eps: added to the variance, at least 0.
    dtype: of normalized. None is autocast's dtype where autocast is on for the device (but for a float64 residual),
        else that of residual.
    implementation: "auto", "triton", "native" or "reference".

    x, residual and normalized may each be float32, bfloat16 or float16 (in the Triton kernel not both of the halves),
    float64 in the reference; vectors any floating point, used in float32. Returns contiguous (normalized,
    new_residual), the second in the dtype of residual. The sum is formed in float32 and rounded once; what is
    normalised is the rounded sum. Statistics and sums are float32.

    Differentiable once in all but drop_path; gradients have the dtypes of their tensors. The backward is one pass over
    the gradients and new_residual, which it keeps (x only for the gradient of layer_scale), so do not change
    new_residual in place. Where x has the dtype of residual and no factor, one tensor is the gradient of both.
    Forward and backward are deterministic, as in `layer_norm`.

    Raises ValueError for shapes or settings that do not fit, TypeError for dtypes, RuntimeError if a requested
    implementation cannot serve.
    """
    dtype = _result_dtype(residual, dtype)
    check(residual, "residual", weight, bias, eps, dtype)
    check_branch(x, residual, update_bias, layer_scale, drop_path)
    tensors = (residual, x, weight, bias, update_bias, layer_scale, drop_path)
    if library.as_node(tensors[0]):
        return torch.ops.jepa_fast.layer_norm_forward(*tensors, eps, dtype, implementation)[:2]
    if _wants_gradient(*tensors):
        return _LayerNorm.apply(*tensors, eps, dtype, implementation)
    return _forward(*tensors, eps, dtype, implementation)[:2]


def _result_dtype(stream: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is not None:
        return dtype
    device = stream.device.type
    if stream.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return stream.dtype


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        update: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        update_bias: Tensor | None,
        layer_scale: Tensor | None,
        drop_path: Tensor | None,
        eps: float,
        dtype: torch.dtype,
        implementation: str,
    ) -> Any:
        outputs = _forward(
            residual, update, weight, bias, update_bias, layer_scale, drop_path, eps, dtype, implementation
        )
        inputs = (residual, update, weight, bias, update_bias, layer_scale, drop_path)
        _keep(ctx, (*inputs, eps, dtype, implementation), outputs)
        ctx.set_materialize_grads(False)  # the stream's last LayerNorm has no gradient of new_residual
        return outputs[0] if update is None else outputs[:2]

    @staticmethod
    @differentiable_once("layer_norm")
    def backward(
        ctx: Any, grad_normalized: Tensor | None, grad_new_residual: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        if grad_normalized is None:
            grad_normalized = torch.zeros_like(ctx.saved_tensors[0], dtype=ctx.dtype)
        saved = (*ctx.saved_tensors, ctx.update_dtype, ctx.implementation)
        found = _backward(grad_normalized, grad_new_residual, *saved)
        return _placed(ctx, found)


def _keep(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    residual, update, weight, bias, update_bias, layer_scale, drop_path, _, ctx.dtype, ctx.implementation = (
        inputs
    )
    ctx.update_dtype = None if update is None else update.dtype
    new_residual = residual if update is None else outputs[1]
    # What each vector's gradient is cast to.
    ctx.dtypes = [None if v is None else v.dtype for v in (weight, bias, update_bias, layer_scale)]
    ctx.save_for_backward(
        new_residual,
        *outputs[2:],
        weight,
        update if layer_scale is not None else None,
        update_bias,
        layer_scale,
        drop_path,
    )


def _placed(ctx: Any, found: list[Tensor]) -> tuple[Tensor | None, ...]:
    """A gradient for every argument of the forward."""
    residual, sums, *branch = found
    update = None if ctx.update_dtype is None else branch[0] if branch else residual
    rows = iter(sums.unbind())
    weight, bias, *vectors = (None if dtype is None else next(rows).to(dtype) for dtype in ctx.dtypes)
    return residual, update, weight, bias, *vectors, None, None, None, None


def _forward(
    residual: Tensor,
    update: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    update_bias: Tensor | None,
    layer_scale: Tensor | None,
    drop_path: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(normalized, new_residual, mean, rstd); new_residual is empty where nothing is added."""
    branch = None
    if update is not None:
        branch = Branch(_rows(update), update.dtype, update_bias, layer_scale, drop_path)
    module = OPERATION.choose(implementation, residual.device, *_description(residual, update, dtype))
    normalized, new_residual, mean, rstd = module.forward(_rows(residual), branch, weight, bias, eps, dtype)
    new_residual = residual.new_empty(0) if update is None else new_residual.view(residual.shape)
    return normalized.view(residual.shape), new_residual, mean, rstd


def _backward(
    grad_normalized: Tensor,
    grad_new_residual: Tensor | None,
    new_residual: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    update: Tensor | None,
    update_bias: Tensor | None,
    layer_scale: Tensor | None,
    drop_path: Tensor | None,
    update_dtype: torch.dtype | None,
    implementation: str,
) -> list[Tensor]:
    """The `Gradients`, the last one left out if it is None."""
    branch = None
    if update_dtype is not None:
        x = None if update is None else _rows(update)
        branch = Branch(x, update_dtype, update_bias, layer_scale, drop_path)
    dtypes = _description(new_residual, update_dtype, grad_normalized.dtype)
    module = OPERATION.choose(implementation, new_residual.device, *dtypes)
    found = module.backward(
        _rows(grad_normalized.contiguous()),
        None if grad_new_residual is None else _rows(grad_new_residual.contiguous()),
        _rows(new_residual),
        mean,
        rstd,
        weight,
        branch,
    )
    grad_residual, sums = found.residual.view(new_residual.shape), found.sums
    if found.branch is None:
        return [grad_residual, sums]
    return [grad_residual, sums, found.branch.view(new_residual.shape)]


def _rows(x: Tensor) -> Tensor:
    """[B, N, D] with a contiguous last dimension, which is all that the kernels ask of a layout."""
    x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    if x.ndim == 3:
        return x
    return x.reshape(x.shape[0] if x.ndim > 1 else 1, math.prod(x.shape[1:-1]), x.shape[-1])


def _description(
    residual: Tensor, update: Tensor | torch.dtype | None, dtype: torch.dtype
) -> tuple[dict[str, torch.dtype], int, int]:
    """Dtypes by name, features and rows: what an implementation's `why_not` looks at."""
    dtypes = {"residual": residual.dtype, "normalized": dtype}
    if update is not None:
        dtypes["x"] = update.dtype if isinstance(update, Tensor) else update
    return dtypes, residual.shape[-1], math.prod(residual.shape[:-1])


def explain(*tensors: Tensor, dtype: torch.dtype | None = None, **options: Any) -> Explanation:
    """What `layer_norm(x, weight, bias)` or `add_layer_norm(x, residual, weight, bias)` would choose, by the number of
    tensors, and why the others are refused."""
    if len(tensors) not in (3, 4):
        raise ValueError(
            f"tensors: expected the 3 of layer_norm or the 4 of add_layer_norm, got {len(tensors)}"
        )
    *update, stream, weight, bias = tensors
    dtype = _result_dtype(stream, dtype)
    check(stream, "residual" if update else "x", weight, bias, options.pop("eps", 1e-6), dtype)
    if update:
        vectors = [options.pop(name, None) for name in ("update_bias", "layer_scale", "drop_path")]
        check_branch(update[0], stream, *vectors)
    if options:
        raise TypeError(f"options: expected those of the op, got {', '.join(options)}")
    return OPERATION.explain(stream.device, *_description(stream, update[0] if update else None, dtype))


def example_inputs(device: torch.device) -> tuple[Any, ...]:
    """Small arguments of `add_layer_norm`, for `jepa-fast doctor`."""
    x = torch.zeros(2, 8, 64, device=device)
    return x, x, torch.ones(64, device=device), torch.zeros(64, device=device)


_BRANCH = "Tensor? update_bias, Tensor? layer_scale, Tensor? drop_path"

library.define(
    f"layer_norm_forward(Tensor residual, Tensor? update, Tensor weight, Tensor bias, {_BRANCH}, float eps, "
    "ScalarType dtype, str implementation) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    lambda residual, update, *rest: (
        residual.new_empty(residual.shape, dtype=rest[-2]),
        residual.new_empty(0 if update is None else residual.shape),
        *(_statistics(residual) for _ in range(2)),
    ),
)
library.define(
    "layer_norm_backward(Tensor grad_normalized, Tensor? grad_new_residual, Tensor new_residual, Tensor mean, "
    f"Tensor rstd, Tensor weight, Tensor? update, {_BRANCH}, ScalarType? update_dtype, str implementation) -> Tensor[]",
    _backward,
    lambda *arguments: _like_backward(*arguments),
)


def _statistics(residual: Tensor) -> Tensor:
    dtype = torch.float64 if residual.dtype == torch.float64 else torch.float32
    tokens = math.prod(residual.shape[1:-1])
    return residual.new_empty((residual.shape[0] if residual.ndim > 1 else 1, tokens), dtype=dtype)


def _like_backward(*arguments: Any) -> list[Tensor]:
    _, _, new_residual, mean, _, _, _, update_bias, layer_scale, drop_path, update_dtype, _ = arguments
    branch = Branch(None, update_dtype or new_residual.dtype, update_bias, layer_scale, drop_path)
    found = [
        new_residual.new_empty(new_residual.shape),
        mean.new_empty((2 + branch.vectors, new_residual.shape[-1])),
    ]
    if not branch.shares_gradient(new_residual.dtype):
        found.append(new_residual.new_empty(new_residual.shape, dtype=branch.dtype))
    return found


def _keep_compiled(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _keep(ctx, inputs, output)
    ctx.mark_non_differentiable(*output[2:], *(output[1:2] if inputs[1] is None else ()))


def _gradient_compiled(
    ctx: Any, grad_normalized: Tensor, grad_new_residual: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    saved = (*ctx.saved_tensors, ctx.update_dtype, ctx.implementation)
    if ctx.update_dtype is None:
        grad_new_residual = None
    found = torch.ops.jepa_fast.layer_norm_backward(grad_normalized, grad_new_residual, *saved)
    return _placed(ctx, found)


torch.library.register_autograd(
    "jepa_fast::layer_norm_forward", _gradient_compiled, setup_context=_keep_compiled
)
