"""What the kernels have in common: project, reduce, compare, and carry the gradient back."""

from abc import ABC, abstractmethod

import torch
import torch.distributed
from torch import Tensor

from .quadrature import DEVIATION_EPS, Quadrature, quadrature
from .settings import Settings


class Kernels(ABC):
    """What an implementation brings. Projections are [views, N, M], contiguous, float32 (float64 if x is)."""

    def slices_at_a_time(self, rows: int) -> int | None:
        """Slices whose projections of `rows` rows exist at the same time; None for all of them."""
        return None

    @abstractmethod
    def directions(self, seed: int | Tensor, features: int, slices: int, like: Tensor) -> Tensor:
        """Those of philox.py [features, slices], on the device of `like`, at least as exact as float32."""

    @abstractmethod
    def sums(self, projections: Tensor, rule: Quadrature) -> Tensor:
        """Sums of cosines and sines over parts of the rows [parts, 2, views, multiples, M]."""

    @abstractmethod
    def slopes(self, projections: Tensor, differences: Tensor, rule: Quadrature) -> Tensor:
        """Sum over j of differences[1] cos(t_j y) - differences[0] sin(t_j y) like y; may overwrite projections.

        differences: [2, views, multiples, M] in the dtype of projections, contiguous.
        """

    def project(self, x: Tensor, directions: Tensor) -> Tensor:
        """x [rows, D] @ directions [D, M]."""
        dtype = working_dtype(x)
        return torch.mm(x.to(dtype), directions.to(dtype))

    def back(self, slopes: Tensor, directions: Tensor, gradient: Tensor, dtype: torch.dtype) -> None:
        """gradient [rows, D] += slopes [rows, M] @ directions^T. dtype: that of x."""
        gradient.addmm_(slopes, directions.to(slopes.dtype).t())


def working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def loss_and_gradient(
    kernels: Kernels,
    x: Tensor,
    directions: Tensor | None,
    seed: int | Tensor,
    settings: Settings,
    group: torch.distributed.ProcessGroup | None,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """x [views, N, D] -> (loss, d loss / d x or None), float32 (float64 if x is)."""
    x = x.detach()
    views, rows, features = x.shape
    form, working = settings.form, working_dtype(x)
    if directions is None:
        directions = kernels.directions(seed, features, settings.num_slices, x)
    slices = directions.shape[1]
    rule = quadrature(settings, rows)
    knots, weights, targets = (table.unsqueeze(1) for table in rule.tables(x.device))
    reducing = group if form.reduced else None
    # One collective needs all sums before the first difference is known.
    width = (kernels.slices_at_a_time(views * rows) if reducing is None else None) or slices

    flat = x.reshape(views * rows, features)
    error = torch.zeros((), dtype=torch.float64, device=x.device)
    gradient = torch.zeros(flat.shape, dtype=working, device=x.device) if wants_gradient else None
    count: float | Tensor = float(rows)
    for start in range(0, slices, width):
        some = directions[:, start : start + width]
        projections = kernels.project(flat, some).view(views, rows, some.shape[1])
        deviation = _standardize(projections) if form.standardized else None
        sums = kernels.sums(projections, rule).sum(0, dtype=torch.float64)  # [2, views, multiples, M]
        if reducing is not None:
            sums, count = _all_reduce(sums, rows, reducing)
        sums /= count
        sums[0] -= targets
        # One dimension after the other: the order of addition does not depend on the number of threads.
        error += (sums.square() * weights).sum(0).sum(0).sum(0).sum(0)
        if gradient is not None and rows:
            differences = (sums * (weights * knots)).to(working)
            if deviation is None:
                slopes = kernels.slopes(projections, differences, rule)
            else:
                slopes = kernels.slopes(projections.clone(), differences, rule)
                _through_standardization(slopes, projections, deviation)
            kernels.back(slopes.view(views * rows, -1), some, gradient, x.dtype)
        del projections
    scale = (count if form.scaled else 1.0) * (1 if form.reduced else settings.world_size) / (views * slices)
    if gradient is not None:
        factor = 2.0 * scale / count * (settings.world_size if settings.averaged_gradients else 1)
        gradient = gradient.mul_(factor).view(x.shape)
    return (error * scale).to(working), gradient


def _all_reduce(sums: Tensor, rows: int, group: torch.distributed.ProcessGroup) -> tuple[Tensor, Tensor]:
    """The sums and the number of rows over all processes, in one collective."""
    packed = torch.cat([sums.flatten(), torch.full((1,), rows, dtype=sums.dtype, device=sums.device)])
    torch.distributed.all_reduce(packed, group=group)
    return packed[:-1].view_as(sums), packed[-1]


def _standardize(projections: Tensor) -> Tensor:
    """To mean 0 and deviation 1 over N, in place. Returns the deviations [views, 1, M]."""
    deviation, mean = torch.std_mean(projections, dim=1, keepdim=True)
    projections.sub_(mean).div_(deviation + DEVIATION_EPS)
    return deviation


def _through_standardization(slopes: Tensor, standardized: Tensor, deviation: Tensor) -> None:
    """Slopes with respect to standardised projections -> with respect to projections, in place."""
    along = (slopes * standardized).sum(1, keepdim=True) / (standardized.shape[1] - 1)
    # At deviation 0 all projections are equal; autograd takes the deviation's own gradient as 0 there.
    stretch = torch.where(deviation == 0, 0.0, (deviation + DEVIATION_EPS) / deviation)
    slopes -= slopes.mean(1, keepdim=True) + standardized * (along * stretch)
    slopes /= deviation + DEVIATION_EPS
