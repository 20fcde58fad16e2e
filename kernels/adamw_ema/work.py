"""One step, ready for an implementation."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .plan import Gradients, Plan
from .tensors import Tensors

# Columns of `Work.hyperparameters`.
LR, BETA1, BETA2, EPS, WEIGHT_DECAY, MOMENTUM = range(6)
# What torch.nn.utils.clip_grad_norm_ adds to the norm before it divides by it.
NORM_EPS = 1e-6


class Report(NamedTuple):
    """Where a step leaves word of itself, on the tensors' device.

    norm: float32 [1], of all gradients before clipping. skipped: int64 [1], how many steps were skipped so far.
    """

    norm: Tensor
    skipped: Tensor


class Work(NamedTuple):
    """hyperparameters: float64 [groups, 6] on the tensors' device. max_norm: infinite if only the norm is wanted, None
    if not even that. skip: whether a norm that is not finite leaves everything as it is. reduce: adds the sum of
    squares, float64 [1], over the processes that hold the other shards."""

    tensors: Tensors
    plan: Plan
    gradients: Gradients
    hyperparameters: Tensor
    max_norm: float | None
    skip: bool
    report: Report | None
    reduce: Callable[[Tensor], None] | None

    @property
    def refusals(self) -> list[str]:
        """Why the kernels cannot serve."""
        return self.plan.refusals or self.gradients.refusals


def hyperparameter_table(rows: Sequence[Sequence[float | Tensor]], device: torch.device) -> Tensor:
    """`Work.hyperparameters`; values in device memory stay there."""
    numbers = [[0.0 if isinstance(value, Tensor) else value for value in row] for row in rows]
    table = torch.tensor(numbers, dtype=torch.float64).reshape(len(rows), MOMENTUM + 1)
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    copy_device_values_(table, rows)
    return table


def copy_device_values_(table: Tensor, rows: Sequence[Sequence[float | Tensor]]) -> None:
    """Those values of `rows` that are tensors, to their places in the table."""
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if isinstance(value, Tensor):
                table[i, j].copy_(value.detach().reshape(()), non_blocking=True)
