"""SIGReg in plain PyTorch: the oracle, and the fallback.

    y_nm = sum over d of x_nd A_dm                                   projections on unit directions
    C_jm = mean over n of cos(t_j y_nm),  S_jm = mean over n of sin(t_j y_nm)
    loss = N * mean over m of sum over j of w_j [(C_jm - phi_j)^2 + S_jm^2]             phi_j = exp(-t_j^2 / 2)

    d loss / d y_nm = 2 / M * sum over j of w_j t_j [S_jm cos(t_j y_nm) - (C_jm - phi_j) sin(t_j y_nm)]

(LeJEPA, arXiv 2511.08544: the Epps-Pulley statistic of each slice by the trapezoid rule with the window exp(-t^2 / 2).)
quadrature.py lists t, w and phi, pipeline.py has the rest of the formula; here is what happens at the knots, one knot
after the other, in the dtype of the projections.
"""

import torch
import torch.distributed
from torch import Tensor

from . import philox, pipeline
from .quadrature import Quadrature
from .settings import Settings

_VALUES = 1 << 22  # projections at a time


def why_not(x: Tensor) -> list[str]:
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
        return max(1, _VALUES // max(1, rows))

    def directions(self, seed: int | Tensor, features: int, slices: int, like: Tensor) -> Tensor:
        return philox.directions(seed, features, slices, like)

    def sums(self, projections: Tensor, rule: Quadrature) -> Tensor:
        knots, _, _ = rule.tables(projections.device)
        sums = []
        for knot in knots.to(projections.dtype):
            phases = projections * knot
            sums.append(torch.stack([phases.cos().sum(1), phases.sin().sum(1)]))  # [2, views, M]
        return torch.stack(sums, dim=2).unsqueeze(0)

    def slopes(self, projections: Tensor, differences: Tensor, rule: Quadrature) -> Tensor:
        knots, _, _ = rule.tables(projections.device)
        slopes = torch.zeros_like(projections)
        for j, knot in enumerate(knots.to(projections.dtype)):
            phases = projections * knot
            real, imaginary = differences[:, :, j].unsqueeze(2)  # [views, 1, M]
            slopes += imaginary * phases.cos() - real * phases.sin()
        return slopes
