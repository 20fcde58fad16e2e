"""The prediction loss of joint-embedding predictive architectures, against normalised and selected target tokens."""

import math
from typing import Any

import torch
from torch import Tensor

from ..runtime import library
from ..runtime.choice import Explanation, Operation
from ..runtime.derivative import differentiable_once
from . import reference
from .index import check_values
from .settings import Settings

__all__ = ["latent_prediction_loss"]

OPERATION = Operation("latent_loss", __package__, triton="triton_latent_loss", native="native")
KINDS = ("smooth_l1", "l1", "mse")


def latent_prediction_loss(
    prediction: Tensor,
    target: Tensor,
    index: Tensor | None = None,
    *,
    kind: str = "smooth_l1",
    beta: float = 1.0,
    normalize_target: bool = True,
    eps: float = 1e-5,
    implementation: str = "auto",
) -> Tensor:
    """Mean penalty between predicted and target embeddings; the target tokens are selected by `index` and
    normalised (LayerNorm over D without affine) inside the op, so that no [B, N, D] or gathered copy is stored.

    The loss of I-JEPA (arXiv 2301.08243: smooth-L1) and V-JEPA (arXiv 2404.08471: L1):

        loss = mean over p, k, d of l(prediction[p, k, d] - LayerNorm(target[p % B, index[p, k]])[d])

    prediction: [P, K, D]; P is a multiple of B. P > B is I-JEPA's layout of M = P / B target masks concatenated on
        the batch dimension (row m * B + b belongs to sample b).
    target: [B, N, D], the teacher's output.
    index: int64 [P, K] with values in [0, N), or [B, K] if all masks share it; None takes token k for k < K <= N.
        Wrong values raise on the CPU; on CUDA, where a check would stop the stream, they make the loss NaN.
    kind: l(x) = "smooth_l1": x^2 / (2 beta) below beta, |x| - beta / 2 above; "l1": |x|; "mse": x^2.
    beta: of smooth-L1, at least 0; 0 is L1.
    normalize_target: False compares with the target rows as they are.
    eps: added to the variance, at least 0.
    implementation: "auto", "triton", "native" or "reference".

    prediction and target: float32, bfloat16 or float16 in the kernels, in any mixture; float64 in the reference.
    Returns a scalar, float32 (float64 if an input is). Accumulation is in float32 within a row. Differentiable in
    prediction; where target requires gradients (no stop-gradient, as in LeWorldModel) the reference serves, and
    is differentiable in both. Forward and backward are deterministic. Under autocast the inputs are taken as they
    come: nothing is cast.

    Raises ValueError for shapes, index values or settings that do not fit, TypeError for dtypes, RuntimeError if a
    requested implementation cannot serve.
    """
    settings = Settings(kind, float(beta), bool(normalize_target), float(eps))
    _check(prediction, target, index, settings)
    if target.requires_grad and torch.is_grad_enabled():
        return _differentiable_in_target(prediction, target, index, settings, implementation)
    if prediction.requires_grad and torch.is_grad_enabled():
        return _LatentLoss.apply(prediction, target, index, settings, implementation)
    return _forward(prediction, target, index, settings, implementation)


class _LatentLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        target: Tensor,
        index: Tensor | None,
        settings: Settings,
        implementation: str,
    ) -> Tensor:
        ctx.save_for_backward(prediction, target, index)
        ctx.settings, ctx.implementation, ctx.gradient = settings, implementation, None
        if library.as_node(prediction) or prediction.device.type != "cpu":
            return _forward(prediction, target, index, settings, implementation)
        # The loss is nearly always the root of the graph, where the upstream gradient is 1. On the CPU that can be
        # seen without waiting, so the same pass over the rows leaves the gradient, too.
        one = torch.ones((), dtype=_loss_dtype(prediction, target))
        loss, ctx.gradient = _evaluate(prediction, target, index, settings, implementation, one)
        return loss

    @staticmethod
    @differentiable_once("latent_prediction_loss")
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None  # handed over once; a second backward forms it anew
        if gradient is None or upstream != 1.0:
            prediction, target, index = ctx.saved_tensors
            gradient = _backward(upstream, prediction, target, index, ctx.settings, ctx.implementation)
        return gradient, None, None, None, None


def _forward(
    prediction: Tensor, target: Tensor, index: Tensor | None, settings: Settings, implementation: str
) -> Tensor:
    if library.as_node(prediction):
        return torch.ops.jepa_fast.latent_loss_forward(prediction, target, index, *settings, implementation)
    return _evaluate(prediction, target, index, settings, implementation, None)[0]


def _backward(
    upstream: Tensor,
    prediction: Tensor,
    target: Tensor,
    index: Tensor | None,
    settings: Settings,
    implementation: str,
) -> Tensor | None:
    if library.as_node(prediction):
        return torch.ops.jepa_fast.latent_loss_backward(
            upstream, prediction, target, index, *settings, implementation
        )
    return _evaluate(prediction, target, index, settings, implementation, upstream)[1]


def _evaluate(
    prediction: Tensor,
    target: Tensor,
    index: Tensor | None,
    settings: Settings,
    implementation: str,
    upstream: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """(loss, upstream * d loss / d prediction); no gradient if upstream is None."""
    module = OPERATION.choose(implementation, prediction.device, prediction, target)
    index = None if index is None else index.contiguous()
    return module.loss_and_gradient(_rows(prediction), _rows(target), index, settings, upstream)


def _rows(tensor: Tensor) -> Tensor:
    """With the feature dimension contiguous: all that the kernels ask of a layout."""
    return tensor if tensor.stride(2) == 1 or tensor.shape[2] == 1 else tensor.contiguous()


def _differentiable_in_target(
    prediction: Tensor, target: Tensor, index: Tensor | None, settings: Settings, implementation: str
) -> Tensor:
    if implementation not in ("auto", "reference"):
        raise RuntimeError(
            f"implementation: {implementation} cannot serve latent_loss: target requires gradients, which only the "
            "reference computes; pass target.detach() for the usual stop-gradient"
        )
    if not library.as_node(prediction):
        check_values(index, target)
    return reference.loss(prediction, target, index, settings)


def _check(prediction: Tensor, target: Tensor, index: Tensor | None, settings: Settings) -> None:
    if prediction.ndim != 3 or target.ndim != 3:
        name, tensor = ("prediction", prediction) if prediction.ndim != 3 else ("target", target)
        raise ValueError(f"{name}: expected three dimensions [batch, tokens, D], got {list(tensor.shape)}")
    groups, tokens, features = prediction.shape
    samples, length, target_features = target.shape
    if not (prediction.is_floating_point() and target.is_floating_point()):
        raise TypeError(
            f"prediction and target: expected floating-point dtypes, got {prediction.dtype} and {target.dtype}"
        )
    if features != target_features:
        raise ValueError(f"target: expected D = {features} as in prediction, got {target_features}")
    if samples == 0 or groups % samples:
        raise ValueError(
            f"prediction: expected a multiple of B = {samples} rows (target's batch), got {groups}"
        )
    if target.device != prediction.device:
        raise ValueError(f"target: expected device {prediction.device} of prediction, got {target.device}")
    if index is None:
        if tokens > length:
            raise ValueError(
                f"prediction: expected at most N = {length} tokens without an index, got {tokens}"
            )
    else:
        if index.dtype != torch.int64:
            raise TypeError(f"index: expected int64, got {index.dtype}")
        if index.ndim != 2 or index.shape[1] != tokens or index.shape[0] not in (groups, samples):
            accepted = f"[{groups}, {tokens}]" + (f" or [{samples}, {tokens}]" if samples != groups else "")
            raise ValueError(f"index: expected int64 {accepted}, got {list(index.shape)}")
        if index.device != prediction.device:
            raise ValueError(f"index: expected device {prediction.device} of prediction, got {index.device}")
    if settings.kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {settings.kind!r}")
    if not 0.0 <= settings.beta < math.inf:
        raise ValueError(f"beta: expected a finite number of at least 0, got {settings.beta}")
    if not 0.0 <= settings.eps < math.inf:
        raise ValueError(f"eps: expected a finite number of at least 0, got {settings.eps}")


def explain(prediction: Tensor, target: Tensor, index: Tensor | None = None, **options: Any) -> Explanation:
    """What `latent_prediction_loss` would choose for these arguments, and why the others are refused."""
    settings = Settings(
        **{"kind": "smooth_l1", "beta": 1.0, "normalize_target": True, "eps": 1e-5, **options}
    )
    _check(prediction, target, index, settings)
    return OPERATION.explain(prediction.device, prediction, target)


def example_inputs(device: torch.device) -> tuple[Any, ...]:
    """Small arguments of `latent_prediction_loss`, for `jepa-fast doctor`."""
    index = torch.arange(4, device=device).expand(2, 4)
    return torch.zeros(2, 4, 16, device=device), torch.zeros(2, 8, 16, device=device), index


def _loss_dtype(prediction: Tensor, target: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (prediction.dtype, target.dtype) else torch.float32


_OPTIONS = "str kind, float beta, bool normalize_target, float eps, str implementation"

library.define(
    f"latent_loss_forward(Tensor prediction, Tensor target, Tensor? index, {_OPTIONS}) -> Tensor",
    lambda prediction, target, index, kind, beta, normalize_target, eps, implementation: _evaluate(
        prediction, target, index, Settings(kind, beta, normalize_target, eps), implementation, None
    )[0],
    lambda prediction, target, *_: prediction.new_empty((), dtype=_loss_dtype(prediction, target)),
)
library.define(
    f"latent_loss_backward(Tensor upstream, Tensor prediction, Tensor target, Tensor? index, {_OPTIONS}) -> Tensor",
    lambda upstream, prediction, target, index, kind, beta, normalize_target, eps, implementation: _evaluate(
        prediction, target, index, Settings(kind, beta, normalize_target, eps), implementation, upstream
    )[1],
    lambda upstream, prediction, *_: prediction.new_empty(prediction.shape),
)
