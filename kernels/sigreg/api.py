"""Sketched isotropic Gaussian regularisation (SIGReg): the loss that keeps LeJEPA's embeddings from collapsing."""

import math
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from ..runtime import collective, library
from ..runtime.choice import Explanation, Operation
from ..runtime.derivative import differentiable_once
from .settings import VARIANTS, Settings

__all__ = ["sigreg_loss"]

OPERATION = Operation("sigreg", __package__, triton="triton_sigreg", native="native")
_SEEDS = 2**63
_COUNTERS = 2**32  # of four directions' elements each


def sigreg_loss(
    x: Tensor,
    *,
    num_slices: int | None = None,
    num_knots: int | None = None,
    t_max: float | None = None,
    seed: int | Tensor = 0,
    directions: Tensor | None = None,
    group: ProcessGroup | None = None,
    averaged_gradients: bool = False,
    variant: str = "lejepa",
    implementation: str = "auto",
) -> Tensor:
    """How far the rows of x are from samples of an isotropic Gaussian: the Epps-Pulley statistic of their projections
    on random unit directions, without a tensor [N, slices, knots].

    SIGReg of LeJEPA (arXiv 2511.08544), with y = x A, unit columns A_m, knots t_j = j t_max / (num_knots - 1), the
    Gaussian's characteristic function phi_j = exp(-t_j^2 / 2) and the trapezoid rule's weights
    w_j = 2 phi_j t_max / (num_knots - 1), half of that at both ends:

        loss = N * mean over m of sum over j of w_j [(mean_n cos(t_j y_nm) - phi_j)^2 + (mean_n sin(t_j y_nm))^2]

    x: [..., N, D]. Statistics are taken over N and averaged over the leading dimensions (views, time steps).
    num_slices: M, directions to draw: 1024 unless the variant says otherwise.
    num_knots: at least 2; 17 unless the variant says otherwise. t_max: the last knot, 3 by default.
    seed: of the directions, an int or an int64 tensor of one element on x's device, such as a step counter; it is
        never read by the host on CUDA. Directions depend on the seed, D and M alone: equal on all ranks and devices
        to within rounding.
    directions: [D, M], floating point, instead of drawing them; taken as they are, not differentiated.
    group: processes that hold one batch together, in pieces of any size, with the same seed and number of views.
        Loss and gradient are those of the whole batch on one process: every rank returns the same loss and the
        gradient with respect to its own rows. Sums are reduced in one collective, in the forward pass.
    averaged_gradients: multiplies the gradient by the number of processes, for DDP and FSDP, which average the
        processes' gradients: parameters then receive the gradient of the whole batch's loss. Without, they would
        receive it divided by that number. No group: no effect.
    variant: the public implementation to follow, "lejepa", or
        "lightly", "lewm": the same formula (lewm: x is [T, B, D], one process; with a group as here);
        "levljepa": the same with 4096 slices;
        "stable_pretraining": leading dimensions are samples, too; sums are those of the own rank, and only the
            factor N counts the others;
        "eb_jepa" (its BCS): 256 slices, num_knots = 10 from -t_max to t_max, no factor N;
        "h_jepa": projections are standardised and compared with num_knots quantiles of the Gaussian by the kernel
            exp(-d^2 / 2); leading dimensions are samples; no t_max, one process. README.md says how.
    implementation: "auto", "triton", "native" or "reference".

    x: float32, bfloat16 or float16 in the kernels, float64 in the reference. Returns a scalar, float32 (float64 if x
    is). Projections, sines and sums of at most 256 rows are float32, the rest is float64. Under autocast x is taken
    as it comes. Differentiable in x, once. The forward pass of an x that requires a gradient forms it as well and
    keeps [..., N, D] values for the backward pass, which only scales them. The kernels are deterministic, whatever
    the number of threads; the matrix products are PyTorch's. What is not finite in x makes the loss NaN.

    Raises ValueError for shapes and settings that do not fit, such as N < 2 without a group, TypeError for types,
    RuntimeError if a requested implementation cannot serve.
    """
    settings = _settings(x, num_slices, num_knots, t_max, directions, group, averaged_gradients, variant)
    _check_seed(seed, x)
    if directions is not None:
        _check_directions(directions, x)
    number, counter = (0, seed) if isinstance(seed, Tensor) else (seed, None)
    group_name = "" if group is None or settings.world_size == 1 else group.group_name
    if x.requires_grad and torch.is_grad_enabled():
        return _SIGReg.apply(x, directions, counter, number, settings, group_name, implementation)
    return _forward(x, directions, counter, number, settings, group_name, False, implementation)[0]


class _SIGReg(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        directions: Tensor | None,
        counter: Tensor | None,
        seed: int,
        settings: Settings,
        group_name: str,
        implementation: str,
    ) -> Tensor:
        # The backward pass would need the sums and the projections of the forward pass: both together make one
        # pass less, and one collective that no backward pass has to join.
        loss, gradient = _forward(x, directions, counter, seed, settings, group_name, True, implementation)
        ctx.save_for_backward(gradient)
        ctx.dtype = x.dtype
        return loss

    @staticmethod
    @differentiable_once("sigreg_loss")
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.dtype), None, None, None, None, None, None


def _forward(
    x: Tensor,
    directions: Tensor | None,
    counter: Tensor | None,
    seed: int,
    settings: Settings,
    group_name: str,
    wants_gradient: bool,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    arguments = (x, directions, counter, seed, *settings, group_name, wants_gradient, implementation)
    if library.as_node(x):
        return torch.ops.jepa_fast.sigreg(*arguments)
    return _evaluate(*arguments)


def _evaluate(
    x: Tensor,
    directions: Tensor | None,
    counter: Tensor | None,
    seed: int,
    variant: str,
    num_slices: int,
    num_knots: int,
    t_max: float,
    world_size: int,
    averaged_gradients: bool,
    group_name: str,
    wants_gradient: bool,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """(loss, d loss / d x in the dtype of the loss); an empty gradient if none is wanted."""
    settings = Settings(variant, num_slices, num_knots, t_max, world_size, averaged_gradients)
    module = OPERATION.choose(implementation, x.device, x)
    group = None
    if group_name:
        group = torch.distributed.distributed_c10d._resolve_process_group(group_name)  # type: ignore[arg-type]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        samples = math.prod(x.shape[:-1]) if settings.form.flattened else x.shape[-2]
        views = 1 if settings.form.flattened else math.prod(x.shape[:-2])
        loss, gradient = module.loss_and_gradient(
            x.detach().reshape(views, samples, x.shape[-1]),
            directions,
            seed if counter is None else counter,
            settings,
            group,
            wants_gradient,
        )
    return loss, loss.new_empty(0) if gradient is None else gradient.view(x.shape)


def _settings(
    x: Tensor,
    num_slices: int | None,
    num_knots: int | None,
    t_max: float | None,
    directions: Tensor | None,
    group: ProcessGroup | None,
    averaged_gradients: bool,
    variant: str,
) -> Settings:
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")
    form = VARIANTS[variant]
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point dtype, got {x.dtype}")
    if x.ndim < 2 or x.shape[-1] == 0 or math.prod(x.shape[:-2]) == 0:
        raise ValueError(f"x: expected [..., N, D] with at least one view and feature, got {list(x.shape)}")
    world_size = collective.size(group)
    if form.standardized and world_size > 1:
        raise ValueError(f"group: the variant {variant} is defined for one process, got {world_size}")
    samples = math.prod(x.shape[:-1]) if form.flattened else x.shape[-2]
    if samples < 2 and (world_size == 1 or not form.reduced):
        raise ValueError(f"x: expected at least N = 2 samples, got {samples} in {list(x.shape)}")
    if directions is not None and directions.ndim == 2:
        if num_slices not in (None, directions.shape[1]):
            raise ValueError(
                f"num_slices: expected {directions.shape[1]}, as in directions, got {num_slices}"
            )
        num_slices = directions.shape[1]
    num_slices = form.num_slices if num_slices is None else num_slices
    num_knots = form.num_knots if num_knots is None else num_knots
    if num_slices < 1:
        raise ValueError(f"num_slices: expected at least 1, got {num_slices}")
    if num_knots < 2:
        raise ValueError(f"num_knots: expected at least 2, got {num_knots}")
    if directions is None and -(-x.shape[-1] // 4) * num_slices >= _COUNTERS:
        raise ValueError(f"num_slices: expected D * num_slices below 2^34, got {x.shape[-1]} * {num_slices}")
    if form.t_max is None and t_max is not None:
        raise ValueError(f"t_max: the variant {variant} has none, got {t_max}")
    t_max = (form.t_max or 0.0) if t_max is None else float(t_max)
    if form.t_max is not None and not 0.0 < t_max < math.inf:
        raise ValueError(f"t_max: expected a finite number above 0, got {t_max}")
    return Settings(variant, num_slices, num_knots, t_max, world_size, averaged_gradients)


def _check_seed(seed: int | Tensor, x: Tensor) -> None:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(
                f"seed: expected an int or int64 with one element, got {seed.dtype} {list(seed.shape)}"
            )
        if seed.device != x.device:
            raise ValueError(f"seed: expected device {x.device} of x, got {seed.device}")
    elif not -_SEEDS <= seed < _SEEDS:
        raise ValueError(f"seed: expected an integer of 64 bits, got {seed}")


def _check_directions(directions: Tensor, x: Tensor) -> None:
    if not directions.is_floating_point():
        raise TypeError(f"directions: expected a floating-point dtype, got {directions.dtype}")
    if directions.ndim != 2 or directions.shape[0] != x.shape[-1]:
        raise ValueError(f"directions: expected [D, M] with D = {x.shape[-1]}, got {list(directions.shape)}")
    if directions.device != x.device:
        raise ValueError(f"directions: expected device {x.device} of x, got {directions.device}")
    if directions.requires_grad and torch.is_grad_enabled():
        raise ValueError("directions: expected no gradient to be required; pass directions.detach()")


def explain(
    x: Tensor,
    *,
    num_slices: int | None = None,
    num_knots: int | None = None,
    t_max: float | None = None,
    directions: Tensor | None = None,
    group: ProcessGroup | None = None,
    variant: str = "lejepa",
    **options: Any,
) -> Explanation:
    """What `sigreg_loss` would choose for these arguments, and why the others are refused."""
    _settings(x, num_slices, num_knots, t_max, directions, group, False, variant)
    return OPERATION.explain(x.device, x)


def example_inputs(device: torch.device) -> tuple[Any, ...]:
    """Small arguments of `sigreg_loss`, for `jepa-fast doctor`."""
    return (torch.zeros(4, 16, device=device),)


def _fake(
    x: Tensor, directions: Tensor | None, counter: Tensor | None, seed: int, *options: Any
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    wants_gradient = options[-2]
    return x.new_empty((), dtype=dtype), x.new_empty(x.shape if wants_gradient else (0,), dtype=dtype)


library.define(
    "sigreg(Tensor x, Tensor? directions, Tensor? counter, SymInt seed, str variant, int num_slices, int num_knots, "
    "float t_max, int world_size, bool averaged_gradients, str group_name, bool wants_gradient, str implementation) "
    "-> (Tensor, Tensor)",
    _evaluate,
    _fake,
)
