"""SIGReg in plain PyTorch: the oracle, and the fallback.

    y_nm = sum over d of x_nd A_dm                                      projections on unit directions
    C_jm = mean over n of cos(t_j y_nm),  S_jm = mean over n of sin(t_j y_nm)
    loss = N * mean over m of sum over j of w_j [(C_jm - phi_j)^2 + S_jm^2]   phi_j = exp(-t_j^2 / 2)

(LeJEPA, arXiv 2511.08544: the Epps-Pulley statistic of each slice by the trapezoid rule with the window exp(-t^2 / 2);
quadrature.py lists t, w and phi.) Slices are taken a few at a time, as [N, M, knots] would fill the memory.
"""

import torch
import torch.distributed
from torch import Tensor

from . import philox
from .quadrature import DEVIATION_EPS, Quadrature, quadrature
from .settings import Settings

_ELEMENTS = 1 << 23  # of y * t at a time


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
    """x [views, N, D] -> (loss [], d loss / d x or None), float64 if x is, else float32."""
    working = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = x.detach().to(working)
    if directions is None:
        directions = philox.directions(seed, x.shape[2], settings.num_slices, x)
    directions = directions.to(working)
    rule = quadrature(settings, x.shape[1])
    width = max(1, _ELEMENTS // max(1, x.shape[0] * x.shape[1] * rule.multiples))
    parts = [directions[:, i : i + width] for i in range(0, directions.shape[1], width)]

    with torch.no_grad():
        sums = torch.cat([_sums(x, part, rule, settings) for part in parts], dim=2)
        count = torch.full((1,), x.shape[1], dtype=working, device=x.device)
        if group is not None and settings.form.reduced:
            packed = torch.cat([sums.flatten(), count])
            torch.distributed.all_reduce(packed, group=group)
            sums, count = packed[:-1].view_as(sums), packed[-1:]
    with torch.set_grad_enabled(wants_gradient):
        sums.requires_grad_(wants_gradient)
        loss = _loss(sums, count, rule, settings)
        if not wants_gradient:
            return loss, None
        (by_sums,) = torch.autograd.grad(loss, sums)
        gradient = torch.zeros_like(x)
        for part, slope in zip(parts, by_sums.split(width, dim=2), strict=True):
            leaf = x.requires_grad_()
            gradient += torch.autograd.grad(_sums(leaf, part, rule, settings), leaf, slope)[0]
    factor = settings.world_size if settings.averaged_gradients else 1
    return loss.detach(), gradient * factor


def _sums(x: Tensor, directions: Tensor, rule: Quadrature, settings: Settings) -> Tensor:
    """Sums over N of cos(t y) and sin(t y): [2, views, M, knots]."""
    projected = x @ directions
    if settings.form.standardized:
        deviation, mean = torch.std_mean(projected, dim=1, keepdim=True)
        projected = (projected - mean) / (deviation + DEVIATION_EPS)
    phases = projected.unsqueeze(-1) * rule.knots(projected)
    return torch.stack([phases.cos().sum(1), phases.sin().sum(1)])


def _loss(sums: Tensor, count: Tensor, rule: Quadrature, settings: Settings) -> Tensor:
    _, weights, targets = (table.to(sums.dtype) for table in rule.tables(sums.device))
    real, imaginary = sums / count
    statistic = ((real - targets).square() + imaginary.square()) @ weights  # [views, M]
    if settings.form.scaled:
        statistic = statistic * count
        if not settings.form.reduced:
            statistic = statistic * settings.world_size
    return statistic.mean()
