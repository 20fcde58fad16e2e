"""EMA update on the CPU in C++ (cpu.cpp)."""

import torch
from torch import Tensor

from ..runtime import native
from .plan import Plan


def why_not(plan: Plan) -> list[str]:
    return plan.refusals


def update_(plan: Plan, targets: list[Tensor], sources: list[Tensor], momentum: float | Tensor) -> None:
    native.function("ema_update")(plan.chunks, 1.0 - float(momentum), torch.get_num_threads())
