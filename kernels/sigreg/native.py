"""SIGReg on the CPU: projections by PyTorch, what happens at the knots in C++ (cpu.cpp)."""

import torch
import torch.distributed
from torch import Tensor

from ..runtime import native
from . import pipeline
from .quadrature import Quadrature
from .settings import Settings

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
# 256 rows are summed in float32, their sums in float64. It is no multiple of the threads: sums must not depend on them.
_ROWS = 256

# 16 MB of projections: they stay in the last-level cache, and the slices of a usual batch are taken in one go. A
# matrix product with fewer than 64 columns is a slow one.
_VALUES, _FEWEST_SLICES = 1 << 22, 64


def why_not(x: Tensor) -> list[str]:
    if x.dtype not in _TYPES:
        return [f"x is {x.dtype}; the kernel takes float32, bfloat16 and float16"]
    return []


def loss_and_gradient(
    x: Tensor,
    directions: Tensor | None,
    seed: int | Tensor,
    settings: Settings,
    group: torch.distributed.ProcessGroup | None,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    return pipeline.loss_and_gradient(_Kernels(), x, directions, seed, settings, group, wants_gradient)


class _Kernels(pipeline.Kernels):
    def slices_at_a_time(self, rows: int) -> int:
        return max(_FEWEST_SLICES, _VALUES // max(1, rows))

    def directions(self, seed: int | Tensor, features: int, slices: int, like: Tensor) -> Tensor:
        drawn = torch.empty((features, slices), dtype=torch.float32)
        native.function("sigreg_directions")(drawn, int(seed), torch.get_num_threads())
        return drawn

    def sums(self, projections: Tensor, rule: Quadrature) -> Tensor:
        views, rows, slices = projections.shape
        sums = torch.empty((-(-rows // _ROWS), 2, views, rule.multiples, slices), dtype=torch.float32)
        native.function("sigreg_sums")(projections, sums, rule.turns, _ROWS, torch.get_num_threads())
        return sums

    def slopes(self, projections: Tensor, differences: Tensor, rule: Quadrature) -> Tensor:
        native.function("sigreg_slopes")(projections, differences, rule.turns, _ROWS, torch.get_num_threads())
        return projections
