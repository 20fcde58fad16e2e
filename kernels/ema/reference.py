"""The exponential moving average of a teacher's parameters in plain PyTorch: the oracle, and the fallback.

    target <- momentum * target + (1 - momentum) * source          (BYOL, arXiv 2006.07733, section 3.1)

written as target + (1 - momentum) * (source - target), `torch.lerp`, which is exact at momentum 0 and 1.
Values are formed in float32 (float64 for float64 targets) and rounded once to the target's dtype. Tensors that
are not floating point (step counters, masks) are copied.
"""

import torch
from torch import Tensor

from .plan import Plan


def why_not(plan: Plan) -> list[str]:
    return []


@torch.no_grad()
def update_(plan: Plan, targets: list[Tensor], sources: list[Tensor], momentum: float | Tensor) -> None:
    weight = 1.0 - momentum
    for target, source in zip(targets, sources, strict=True):
        if not target.is_floating_point():
            target.copy_(source)
            continue
        working = torch.float64 if target.dtype == torch.float64 else torch.float32
        if isinstance(weight, Tensor):
            weight = weight.to(working)
        if target.dtype == source.dtype == working:
            target.lerp_(source, weight)
        else:
            target.copy_(torch.lerp(target.to(working), source.to(working), weight))
