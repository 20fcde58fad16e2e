"""Covariance-regularised losses: VICReg, Barlow Twins and their terms, without a D x D matrix where N < D."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime import collective, library
from ..runtime.choice import Explanation, Operation
from ..runtime.derivative import differentiable_once
from .settings import (
    BARLOW,
    BARLOW_FORMS,
    DIVISORS,
    PAIRS,
    VARIANCE_HALVED,
    VICREG,
    Group,
    Result,
    Settings,
    Views,
)

__all__ = ["barlow_twins_loss", "covariance_loss", "variance_loss", "vicreg_loss"]

OPERATION = Operation("covariance", __package__, triton="triton_covariance", native="native")


class CollapseStatistics(NamedTuple):
    """How far the features are from collapse, of the whole batch, on the device, without gradient.

    standard_deviation: float32 [views, D], the root of the unbiased variance of each feature.
    effective_rank: float32 [views], tr(C)^2 / |C|_F^2 of the covariance matrix: D for features of equal variance
        that are uncorrelated, 1 for one direction; at most the rank of C. NaN where the loss forms no covariances.
        For Barlow Twins [1], of the cross-correlation matrix.
    """

    standard_deviation: Tensor
    effective_rank: Tensor


def covariance_loss(
    z: Tensor,
    *,
    normalization: str = "vicreg",
    group: Group | None = None,
    averaged_gradients: bool = False,
    return_statistics: bool = False,
    implementation: str = "auto",
) -> Any:  # Tensor, or (Tensor, CollapseStatistics)
    """The squared covariances of different features (VICReg, arXiv 2105.04906, equations 3 and 4):

        C    = Zc' Zc / (N - 1),   Zc = z - mean over rows
        loss = sum over i != j of C_ij^2 / divisor

    z: [N, D], N at least 2.
    normalization: the divisor, by its name or by the codebase that uses it:

        "dim"     D           "vicreg", "lightly", "solo_learn", "stable_pretraining"
        "pairs"   D(D - 1)    "eb_jepa": the mean over pairs; D at least 2

    group, averaged_gradients: for a batch that is spread over processes, see `vicreg_loss`.
    return_statistics: also return `CollapseStatistics`, which cost nothing: (loss, statistics).
    implementation: "auto", "triton", "native" or "reference".

    Types, accumulation, gradients and errors as in `vicreg_loss`.
    """
    if normalization not in DIVISORS:
        raise ValueError(_expected("normalization", DIVISORS, normalization))
    settings = Settings(VICREG, 0.0, 0.0, 1.0, 0.0, 0.0, DIVISORS[normalization], False)
    return _loss((z,), settings, group, averaged_gradients, return_statistics, implementation)


def variance_loss(
    z: Tensor,
    *,
    eps: float = 1e-4,
    group: Group | None = None,
    averaged_gradients: bool = False,
    return_statistics: bool = False,
    implementation: str = "auto",
) -> Any:  # Tensor, or (Tensor, CollapseStatistics)
    """The hinge on the features' deviations (VICReg, arXiv 2105.04906, equations 1 and 2):

        loss = mean over d of max(0, 1 - sqrt(var(z[:, d]) + eps))          var: unbiased

    z: [N, D], N at least 2. eps: added to the variance, at least 0. The rest as in `covariance_loss`; the
    effective rank is NaN.
    """
    settings = Settings(VICREG, 0.0, 1.0, 0.0, 0.0, float(eps), False, False)
    return _loss((z,), settings, group, averaged_gradients, return_statistics, implementation)


def vicreg_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
    normalization: str = "vicreg",
    group: Group | None = None,
    averaged_gradients: bool = False,
    return_statistics: bool = False,
    implementation: str = "auto",
) -> Any:  # Tensor, or (Tensor, CollapseStatistics)
    """VICReg's loss of two views of a batch (arXiv 2105.04906, equation 6), as the paper's code weighs its terms:

        invariance * mean (z_a - z_b)^2  +  variance * share * (v(z_a) + v(z_b))  +  covariance * (c(z_a) + c(z_b))

    with v of `variance_loss`, c of `covariance_loss`. A term of weight 0 is not computed.

    z_a, z_b: [N, D] of one dtype on one device; N at least 2.
    normalization: whose code is followed.

        name                  share of v    divisor of c
        "vicreg"              1/2           D
        "lightly"             1/2           D
        "stable_pretraining"  1/2           D
        "solo_learn"          1             D
        "eb_jepa"             1             D(D - 1)

    eps: added to the variance, at least 0.
    group: a torch.distributed process group over which the batch is spread by rows: the loss is that of all rows,
        the same on every process, and the gradient is that of this loss with respect to the local rows. Processes
        may hold different numbers of rows, none too. Every process has to call, all collectives are in the forward
        pass, and the host reads the processes' row counts. Not traceable: torch.compile breaks the graph here, and
        refuses under fullgraph=True.
    averaged_gradients: multiplies the gradient by the number of processes, for DDP and FSDP, which average the
        processes' gradients: parameters then receive the gradient of the whole batch's loss. Without, they would
        receive it divided by that number. No group: no effect.
    return_statistics: also return `CollapseStatistics` of both views, at no cost: (loss, statistics).
    implementation: "auto", "triton", "native" or "reference".

    float32, bfloat16 or float16 in the kernels, float64 in the reference. Returns a scalar, float32 (float64 for
    float64). Accumulation is in float32, sums of sums in float64; values that are not finite show in the loss.
    Differentiable once, in both views; the gradient is formed with the loss. Deterministic. Under autocast the
    inputs are taken as they come: nothing is cast.

    Raises ValueError for shapes, devices, weights or names that do not fit, TypeError for dtypes and for a group
    that is none, RuntimeError if a requested implementation cannot serve.
    """
    if normalization not in PAIRS:
        raise ValueError(_expected("normalization", PAIRS, normalization))
    share = 0.5 if VARIANCE_HALVED[normalization] else 1.0
    for name, weight in (("invariance", invariance), ("variance", variance), ("covariance", covariance)):
        _check_number(name, weight)
    weights = (float(invariance), share * float(variance), float(covariance))
    settings = Settings(VICREG, *weights, 0.0, float(eps), PAIRS[normalization], False)
    return _loss((z_a, z_b), settings, group, averaged_gradients, return_statistics, implementation)


def barlow_twins_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    off_diagonal: float = 0.0051,
    eps: float = 1e-5,
    normalization: str = "barlow_twins",
    group: Group | None = None,
    averaged_gradients: bool = False,
    return_statistics: bool = False,
    implementation: str = "auto",
) -> Any:  # Tensor, or (Tensor, CollapseStatistics)
    """Barlow Twins' loss of two views of a batch (arXiv 2103.03230, equations 1 and 2):

        C    = X' Y / N,  X and Y the views with every feature normalised over the batch
        loss = sum over i of (C_ii - 1)^2 + off_diagonal * sum over i != j of C_ij^2

    off_diagonal: the weight lambda; 0.0051 in the paper's code, 0.005 in the libraries.
    normalization: whose code is followed; s^2 is the biased, S^2 the unbiased variance.

        name                        X                            loss
        "barlow_twins", "lightly"   Xc / sqrt(s^2 + eps)         as above
        "solo_learn"                Xc / sqrt(s^2 + eps)         times 0.025
        "stable_pretraining"        Xc / (S + eps)               as above

    eps: at least 0. Everything else as in `vicreg_loss`.
    """
    if normalization not in BARLOW_FORMS:
        raise ValueError(_expected("normalization", BARLOW_FORMS, normalization))
    factor, unbiased = BARLOW_FORMS[normalization]
    _check_number("off_diagonal", off_diagonal)
    settings = Settings(BARLOW, 0.0, 0.0, factor, float(off_diagonal), float(eps), False, unbiased)
    return _loss((z_a, z_b), settings, group, averaged_gradients, return_statistics, implementation)


def _loss(
    views: Views,
    settings: Settings,
    group: Group | None,
    averaged_gradients: bool,
    return_statistics: bool,
    implementation: str,
) -> Any:
    _check_views(views)
    _check(views, settings, group)
    if not torch.is_grad_enabled():
        views = tuple(view.detach() for view in views)  # so that no gradient is formed
    if group is not None:
        from .spread import untraced

        found = untraced(_spread, views, settings, group, averaged_gradients, implementation)
    else:
        found = _Covariance.apply(*_padded(views), settings, None, 1, implementation)
    loss, deviation, rank = found
    return (loss, CollapseStatistics(deviation, rank)) if return_statistics else loss


def _spread(
    views: Views, settings: Settings, group: Group, averaged_gradients: bool, implementation: str
) -> tuple[Tensor, ...]:
    world = collective.size(group)
    factor = world if averaged_gradients else 1
    return _Covariance.apply(*_padded(views), settings, None if world == 1 else group, factor, implementation)


def _padded(views: Views) -> tuple[Tensor, Tensor | None]:
    return (views[0], views[1] if len(views) == 2 else None)


def _views(z_a: Tensor, z_b: Tensor | None) -> Views:
    return (z_a,) if z_b is None else (z_a, z_b)


class _Covariance(torch.autograd.Function):
    """The gradient for an upstream gradient of 1 is formed with the loss: what both need is then computed once, and
    under a group no collective is left for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        z_a: Tensor,
        z_b: Tensor | None,
        settings: Settings,
        group: Group | None,
        factor: int,
        implementation: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad[:2])
        views = _views(z_a, z_b)
        ctx.dtype, ctx.factor, ctx.arguments = z_a.dtype, factor, (settings, group, implementation)
        ctx.compiled = library.as_node(z_a)
        if ctx.compiled:
            loss, deviation, rank, *found = torch.ops.jepa_fast.covariance_terms(
                z_a, z_b, *settings, wanted, implementation
            )
            ctx.gradients = None
            ctx.save_for_backward(*found)
        else:
            loss, deviation, rank, gradients = _evaluate(views, settings, wanted, group, implementation)
            ctx.gradients = gradients
            ctx.save_for_backward(*views)
        ctx.mark_non_differentiable(deviation, rank)
        return loss, deviation, rank

    @staticmethod
    @differentiable_once("covariance")
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        upstream = upstream * ctx.factor if ctx.factor != 1 else upstream
        if ctx.compiled:
            found: list[Tensor] = [(g * upstream).to(ctx.dtype) for g in ctx.saved_tensors if g.numel()]
        else:
            gradients, ctx.gradients = (
                ctx.gradients,
                None,
            )  # handed over once; a second backward forms them anew
            if gradients is None:
                settings, group, implementation = ctx.arguments
                gradients = _evaluate(ctx.saved_tensors, settings, True, group, implementation).gradients
            # Nearly always the loss is the root of the graph, where the upstream gradient is 1; on the CPU that can
            # be seen without waiting.
            if upstream.device.type != "cpu" or upstream != 1.0:
                torch._foreach_mul_(gradients, upstream.to(gradients[0].dtype))
            found = [gradient.to(ctx.dtype) for gradient in gradients]
        second = found[1] if len(found) == 2 else None
        return found[0], second, None, None, None, None


def _evaluate(
    views: Views, settings: Settings, gradients: bool, group: Group | None, implementation: str
) -> Result:
    module = OPERATION.choose(implementation, views[0].device, *views)
    return module.loss_and_gradients(tuple(map(_rows, views)), settings, gradients, group)


def _rows(view: Tensor) -> Tensor:
    """With the features contiguous and rows that do not overlap: all that the kernels ask of a layout."""
    plain = view.stride(1) == 1 and view.stride(0) >= view.shape[1]
    return view.detach() if plain else view.detach().contiguous()


def _check_views(views: Views) -> None:
    names = ("z_a", "z_b") if len(views) == 2 else ("z",)
    for name, view in zip(names, views, strict=True):
        if not isinstance(view, Tensor) or view.ndim != 2:
            got = list(view.shape) if isinstance(view, Tensor) else type(view).__name__
            raise ValueError(f"{name}: expected a tensor [N, D], got {got}")
        if not view.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {view.dtype}")
        if view.shape[1] == 0:
            raise ValueError(f"{name}: expected at least one feature, got {list(view.shape)}")
    if len(views) == 2:
        first, second = views
        if first.shape != second.shape:
            raise ValueError(f"z_b: expected shape {list(first.shape)} of z_a, got {list(second.shape)}")
        if first.dtype != second.dtype:
            raise TypeError(f"z_b: expected {first.dtype} of z_a, got {second.dtype}")
        if first.device != second.device:
            raise ValueError(f"z_b: expected device {first.device} of z_a, got {second.device}")


def _check(views: Views, settings: Settings, group: Group | None) -> None:
    name, view = ("z_a" if len(views) == 2 else "z"), views[0]
    # Over a group the rows of all processes count; collective.check_rows looks at those.
    if view.shape[0] < 2 and (group is None or collective.size(group) == 1):
        raise ValueError(f"{name}: expected at least two rows, got {list(view.shape)}")
    if settings.pairs and settings.covariance and view.shape[1] < 2:
        raise ValueError(
            f"{name}: expected at least two features for a mean over pairs, got {list(view.shape)}"
        )
    _check_number("eps", settings.eps)


def _check_number(name: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")


def _expected(name: str, accepted: dict[str, Any], got: Any) -> str:
    return f"{name}: expected one of {', '.join(accepted)}, got {got!r}"


def explain(*views: Tensor, **options: Any) -> Explanation:
    """What the losses of this room would choose for one view or two, and why the others are refused.

    The choice depends on device and dtype alone; options are those of the loss in question.
    """
    if len(views) not in (1, 2):
        raise ValueError(f"views: expected one or two tensors, got {len(views)}")
    _check_views(views)
    return OPERATION.explain(views[0].device, *views)


def example_inputs(device: torch.device) -> tuple[Any, ...]:
    """Small arguments of `vicreg_loss`, for `jepa-fast doctor`."""
    return torch.zeros(4, 16, device=device), torch.ones(4, 16, device=device)


def _kept_dtype(view: Tensor) -> torch.dtype:
    """Of gradients whose upstream gradient is not known yet: float16 has no range for them."""
    return torch.float32 if view.dtype == torch.float16 else view.dtype


def _terms(z_a: Tensor, z_b: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *settings, gradients, implementation = rest
    views = _views(z_a, z_b)
    loss, deviation, rank, found = _evaluate(views, Settings(*settings), gradients, None, implementation)
    nothing = z_a.new_empty(0, dtype=_kept_dtype(z_a))
    padded = (*(g.to(_kept_dtype(z_a)) for g in found or ()), nothing, nothing.clone())
    return loss, deviation, rank, padded[0], padded[1]


def _fake_terms(z_a: Tensor, z_b: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *settings, gradients, _ = rest
    working = torch.float64 if z_a.dtype == torch.float64 else torch.float32
    count = 1 if z_b is None else 2
    ranks = 1 if settings[0] == BARLOW else count
    shapes = [z_a.shape if gradients and i < count else (0,) for i in range(2)]
    return (
        z_a.new_empty((), dtype=working),
        z_a.new_empty((count, z_a.shape[1]), dtype=working),
        z_a.new_empty((ranks,), dtype=working),
        *(z_a.new_empty(shape, dtype=_kept_dtype(z_a)) for shape in shapes),
    )


library.define(
    "covariance_terms(Tensor z_a, Tensor? z_b, str form, float invariance, float variance, float covariance, "
    "float off_diagonal, float eps, bool pairs, bool unbiased, bool gradients, str implementation) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _terms,
    _fake_terms,
)
