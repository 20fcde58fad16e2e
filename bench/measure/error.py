"""Our error against the error of eager PyTorch, both held against a float64 oracle."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

TIMES_EAGER = 2.0  # our error may be this many times the error of eager PyTorch in the same dtype
FLOOR_ULPS = 2.0  # plus this many units in the last place of the largest value


@dataclass(frozen=True)
class ErrorCheck:
    """The output that came nearest to its budget, or the first one over it.

    Errors are relative to the oracle's largest value.
    `ratio` is our error over eager's. Eager's error counts as at least half a unit in the last place: that
    much is lost by rounding the oracle itself, so less is luck.
    """

    error: float
    eager_error: float
    budget: float
    ratio: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason


def check_error(ours: Iterable[Tensor], eager: Iterable[Tensor], oracle: Iterable[Tensor]) -> ErrorCheck:
    """Hold every output against its budget: twice eager's largest absolute error plus a few ulps.

    The three run in step, so that generators keep only one output of a long list in memory.

    ours, eager: outputs of the working dtype. oracle: the same outputs in float64.
    """
    worst: ErrorCheck | None = None
    for position, (our, theirs, true) in enumerate(zip(ours, eager, oracle, strict=True)):
        found = _check_one(our, theirs, true, f"output {position}")
        if not found.passed:
            return found
        if worst is None or found.error * worst.budget > worst.error * found.budget:
            worst = found
    if worst is None:
        raise ValueError("ours: expected at least one output, got none")
    return worst


def _check_one(ours: Tensor, eager: Tensor, oracle: Tensor, name: str) -> ErrorCheck:
    if ours.shape != oracle.shape or ours.dtype != eager.dtype:
        reason = f"{name}: expected {eager.dtype} {list(oracle.shape)}, got {ours.dtype} {list(ours.shape)}"
        return ErrorCheck(math.inf, math.nan, math.nan, math.inf, reason)
    if oracle.numel() == 0:
        return ErrorCheck(0.0, 0.0, 0.0, 0.0)
    scale = oracle.abs().max().item() or 1.0
    error = _largest_error(ours, oracle) / scale
    eager_error = _largest_error(eager, oracle) / scale
    ulp = torch.finfo(ours.dtype).eps
    budget = TIMES_EAGER * eager_error + FLOOR_ULPS * ulp
    ratio = error / max(eager_error, ulp / 2)
    reason = (
        "" if error <= budget else f"{name}: relative error {error:.1e} is over its budget of {budget:.1e}"
    )
    return ErrorCheck(error, eager_error, budget, ratio, reason)


def _largest_error(output: Tensor, oracle: Tensor) -> float:
    worst = (output.to(torch.float64) - oracle).abs().max().item()
    return math.inf if math.isnan(worst) else worst
