"""The step on the CPU in C++ (cpu.cpp)."""

import math

import torch

from ..runtime import native
from .work import NORM_EPS, Work


def why_not(work: Work) -> list[str]:
    return work.refusals


def step_(work: Work) -> None:
    plan, gradients, threads = work.plan, work.gradients.table, torch.get_num_threads()
    scale = 1.0
    if work.max_norm is not None and work.report is not None:
        square_sum = native.function("adamw_ema_square_sum")(plan.chunks, gradients, threads)
        if work.reduce is not None:
            total = torch.full((1,), square_sum, dtype=torch.float64)
            work.reduce(total)
            square_sum = total.item()
        norm = math.sqrt(square_sum)
        work.report.norm.fill_(norm)
        if work.skip and not math.isfinite(norm):
            work.report.skipped.add_(1)
            return
        if work.max_norm != math.inf:
            coefficient = work.max_norm / (norm + NORM_EPS)
            scale = 1.0 if coefficient > 1.0 else coefficient  # NaN stays
    native.function("adamw_ema_step")(
        plan.chunks, plan.tensors, gradients, work.hyperparameters, scale, threads
    )
