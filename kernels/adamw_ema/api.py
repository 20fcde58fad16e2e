"""AdamW, the teacher's moving average and the low-precision copies of both, in one pass over the parameters."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime import library
from ..runtime.choice import Explanation
from . import plan as plans
from .check import check_clipping, check_hyperparameters
from .optimizer import AdamWEMA
from .step import OPERATION, increment_versions, new_report, prepare, raise_if_not_finite, run_
from .tensors import Part, Tensors
from .work import Work, hyperparameter_table

__all__ = ["AdamWEMA", "adamw_ema_step_"]


def adamw_ema_step_(
    parameters: Iterable[Tensor],
    gradients: Iterable[Tensor | None],
    exp_avgs: Iterable[Tensor | None],
    exp_avg_sqs: Iterable[Tensor | None],
    steps: Iterable[Tensor | None],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Tensor = 1e-2,
    teachers: Iterable[Tensor | None] | None = None,
    momentum: float | Tensor = 0.996,
    copies: Iterable[Tensor | None] | None = None,
    teacher_copies: Iterable[Tensor | None] | None = None,
    max_norm: float | None = None,
    nonfinite: str = "propagate",
    implementation: str = "auto",
) -> Tensor | None:
    """One step of `AdamWEMA` on lists of tensors, in place: what the optimizer is made of.

        m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  t <- t + 1
        p <- (1 - lr wd) p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
        teacher <- momentum * teacher + (1 - momentum) * p

    (AdamW: arXiv 1711.05101, algorithm 2, as torch.optim.AdamW computes it; teacher: arXiv 2006.07733, section 3.1.)

    All lists have one entry per parameter, on one device, of the parameter's shape.
    parameters: p, float32 in the kernels, any floating-point dtype in the reference. One without a gradient is read
        alone, and may be of any real dtype: what is not floating point is copied to the teacher.
    gradients: g, float32, bfloat16 or float16; None where there is none. They are not changed by clipping.
    exp_avgs, exp_avg_sqs, steps: m, v and t (one float32 element each); None only where the gradient is None.
    lr, weight_decay, momentum: numbers, or one-element tensors in device memory, which a captured CUDA graph reads
        anew.
    teachers: float32, bfloat16 or float16; None where a parameter has none. They follow the new value, also where
        there is no gradient.
    copies, teacher_copies: receive the new p and teacher in their own dtype (bfloat16, float16 or float32).
    max_norm: scales all gradients by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does.
    nonfinite: what to do about an infinite or NaN norm: "propagate" goes on, "skip" leaves every tensor untouched,
        "raise" too and raises RuntimeError (on CUDA it waits for the device).
    implementation: "auto", "triton", "native" or "reference".

    Returns the norm of all gradients before clipping, float32 [1] on their device, None if neither max_norm nor
    nonfinite asks for it. Arithmetic is in float32 (float64 for float64 parameters), each tensor rounded once.
    Not differentiable. Deterministic for a given number of threads. Works under torch.compile(fullgraph=True).

    Raises ValueError or TypeError, before anything is written, for lists that do not match, tensors that share memory,
    sparse gradients, complex parameters, numbers out of range; RuntimeError if a requested implementation cannot serve.
    """
    check_hyperparameters(lr, betas, eps, weight_decay, momentum)
    check_clipping(max_norm, nonfinite)
    tensors = _tensors(parameters, gradients, exp_avgs, exp_avg_sqs, steps, teachers, copies, teacher_copies)
    values = (lr, *betas, eps, weight_decay, momentum)
    if torch.compiler.is_compiling():
        return _step_compiled(tensors, values, max_norm, nonfinite, implementation)
    return _step_(
        tensors, hyperparameter_table([values], _device(tensors)), max_norm, nonfinite, implementation
    )


def _step_(
    tensors: Tensors, hyperparameters: Tensor, max_norm: float | None, nonfinite: str, implementation: str
) -> Tensor | None:
    work = _work(tensors, hyperparameters, max_norm, nonfinite)
    run_(work, implementation)
    increment_versions(tensors)
    if nonfinite == "raise":
        raise_if_not_finite(work)
    return None if work.report is None else work.report.norm


def _work(tensors: Tensors, hyperparameters: Tensor, max_norm: float | None, nonfinite: str) -> Work:
    device = _device(tensors)
    report = None if max_norm is None and nonfinite == "propagate" else new_report(device)
    return prepare(tensors, plans.find(tensors, device), hyperparameters, max_norm, nonfinite, report)


def _tensors(
    parameters: Iterable[Tensor], gradients: Iterable[Tensor | None], *others: Iterable[Tensor | None] | None
) -> Tensors:
    names = ("exp_avgs", "exp_avg_sqs", "steps", "teachers", "copies", "teacher_copies")
    parameters = [parameter.detach() for parameter in parameters]
    parts: dict[str, Part] = {"gradients": list(gradients)}
    for name, part in zip(names, others, strict=True):
        parts[name] = (
            [None] * len(parameters) if part is None else [t if t is None else t.detach() for t in part]
        )
    for name, entries in parts.items():
        if len(entries) != len(parameters):
            raise ValueError(
                f"{name}: expected {len(parameters)} entries, one per parameter, got {len(entries)}"
            )
    return Tensors(parameters, groups=[0] * len(parameters), **parts)


def _device(tensors: Tensors) -> torch.device:
    return tensors.parameters[0].device if tensors.parameters else torch.device("cpu")


def explain(*arguments: Any, **options: Any) -> Explanation:
    """What a step would choose, and why the others are refused.

    Takes the arguments of `adamw_ema_step_`, or an `AdamWEMA` whose parameters have the gradients of its next step.
    """
    if arguments and isinstance(arguments[0], AdamWEMA):
        return arguments[0].explain()
    options.pop("implementation", None)
    return _explain(*arguments, **options)


def _explain(
    parameters: Iterable[Tensor],
    gradients: Iterable[Tensor | None],
    exp_avgs: Iterable[Tensor | None],
    exp_avg_sqs: Iterable[Tensor | None],
    steps: Iterable[Tensor | None],
    *,
    lr: float | Tensor = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Tensor = 1e-2,
    teachers: Iterable[Tensor | None] | None = None,
    momentum: float | Tensor = 0.996,
    copies: Iterable[Tensor | None] | None = None,
    teacher_copies: Iterable[Tensor | None] | None = None,
    max_norm: float | None = None,
    nonfinite: str = "propagate",
) -> Explanation:
    check_hyperparameters(lr, betas, eps, weight_decay, momentum)
    check_clipping(max_norm, nonfinite)
    tensors = _tensors(parameters, gradients, exp_avgs, exp_avg_sqs, steps, teachers, copies, teacher_copies)
    table = hyperparameter_table([(lr, *betas, eps, weight_decay, momentum)], _device(tensors))
    return OPERATION.explain(_device(tensors), _work(tensors, table, max_norm, nonfinite))


def example_inputs(device: torch.device) -> tuple[Any, ...]:
    """Small arguments of `adamw_ema_step_`, for `jepa-fast doctor`."""
    lists = [[torch.zeros(16, 16, device=device)] for _ in range(4)]
    return *lists, [torch.zeros((), device=device)]


# The parts of `Tensors` that may lack entries. A registered op takes lists without gaps, so a mask per parameter says
# which parts it has.
_GAPPED = ("gradients", "exp_avgs", "exp_avg_sqs", "steps", "teachers", "copies", "teacher_copies")


def _step_compiled(
    tensors: Tensors,
    values: Sequence[float | Tensor],
    max_norm: float | None,
    nonfinite: str,
    implementation: str,
) -> Tensor | None:
    device = next((value.device for value in values if isinstance(value, Tensor)), torch.device("cpu"))
    zero = torch.zeros((), dtype=torch.float64, device=device)
    # A number would be frozen into the graph, which a schedule would then compile anew at every step. The sum is the
    # one form that Dynamo keeps open.
    hyperparameters = torch.stack([zero + (v.reshape(()) if isinstance(v, Tensor) else v) for v in values])
    parts = [getattr(tensors, name) for name in _GAPPED]
    masks = [
        sum(1 << bit for bit, part in enumerate(parts) if part[i] is not None)
        for i in range(len(tensors.parameters))
    ]
    dense = [[tensor for tensor in part if tensor is not None] for part in parts]
    norm = torch.ops.jepa_fast.adamw_ema_step_(
        tensors.parameters, *dense, masks, hyperparameters, max_norm, nonfinite, implementation
    )
    return None if max_norm is None and nonfinite == "propagate" else norm


def _registered(parameters: list[Tensor], *arguments: Any) -> Tensor:
    *dense, masks, hyperparameters, max_norm, nonfinite, implementation = arguments
    parts: dict[str, Part] = {}
    for bit, (name, entries) in enumerate(zip(_GAPPED, dense, strict=True)):
        remaining = iter(entries)
        parts[name] = [next(remaining) if mask >> bit & 1 else None for mask in masks]
    tensors = Tensors(parameters, groups=[0] * len(parameters), **parts)
    table = hyperparameters.reshape(1, -1).to(_device(tensors))
    norm = _step_(tensors, table, max_norm, nonfinite, implementation)
    return torch.zeros(1, device=_device(tensors)) if norm is None else norm


library.define(
    "adamw_ema_step_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] steps, Tensor(e!)[] teachers, Tensor(f!)[] copies, Tensor(g!)[] teacher_copies, int[] masks, "
    "Tensor hyperparameters, float? max_norm, str nonfinite, str implementation) -> Tensor",
    _registered,
    lambda parameters, *_: torch.empty(1, device=parameters[0].device if parameters else "cpu"),
)
