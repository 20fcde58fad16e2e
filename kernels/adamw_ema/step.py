"""One step over any number of parameter groups: what the function and the optimizer share."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..runtime.choice import Operation
from .plan import Plan
from .tensors import Tensors
from .work import Report, Work

OPERATION = Operation("adamw_ema", __package__, triton="triton_adamw_ema", native="native")


def prepare(
    tensors: Tensors,
    plan: Plan,
    hyperparameters: Tensor,
    max_norm: float | None,
    nonfinite: str,
    report: Report | None,
    reduce: Callable[[Tensor], None] | None = None,
) -> Work:
    """The step, checked. Raises as `adamw_ema_step_` documents."""
    if nonfinite != "propagate" and max_norm is None:
        max_norm = math.inf  # the norm is wanted all the same
    gradients = plan.gradients(tensors)
    return Work(tensors, plan, gradients, hyperparameters, max_norm, nonfinite != "propagate", report, reduce)


def new_report(device: torch.device) -> Report:
    return Report(torch.zeros(1, device=device), torch.zeros(1, dtype=torch.int64, device=device))


def run_(work: Work, implementation: str) -> None:
    OPERATION.choose(implementation, work.plan.device, work).step_(work)


def raise_if_not_finite(work: Work) -> None:
    """Raises RuntimeError that names the first gradient at fault. Waits for the device."""
    if work.report is None or math.isfinite(norm := work.report.norm.item()):
        return
    for i, gradient in enumerate(work.tensors.gradients):
        if gradient is not None and not gradient.isfinite().all():
            raise RuntimeError(
                f"gradients[{i}]: expected finite values, got {norm} as the norm; nothing was updated"
            )
    raise RuntimeError(f"gradients: expected a finite norm, got {norm}; nothing was updated")


def increment_versions(tensors: Tensors) -> None:
    """Kernels write behind autograd's back; a graph that saved an old value must notice."""
    written = [p for p, g in zip(tensors.parameters, tensors.gradients, strict=True) if g is not None]
    for part in (
        tensors.exp_avgs,
        tensors.exp_avg_sqs,
        tensors.teachers,
        tensors.copies,
        tensors.teacher_copies,
    ):
        written += [tensor for tensor in part if tensor is not None]
    torch.autograd.graph.increment_version(written)
