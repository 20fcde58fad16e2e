"""The knots at which characteristic functions are compared, and their weights. The derivations are in README.md."""

import functools
import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from .settings import Settings

# `h_jepa`: the Gaussian kernel's integral is cut and its period chosen such that less than this many units in the
# last place of float64 is lost: exp(-8.6^2 / 2) = 9e-17.
_REACH = 8.6
_QUANTILES = (0.01, 0.99)
DEVIATION_EPS = 1e-6  # added to the standard deviation, as there


class Quadrature(NamedTuple):
    """Sum over j of weights[j] * |c(t_j) - targets[j]|^2 with t_j = (j + 1) * step, c the characteristic function.

    The knot 0 is left out: every characteristic function is 1 there. Knots below 0 are folded onto those above.
    """

    step: float
    weights: tuple[float, ...]
    targets: tuple[float, ...]

    @property
    def multiples(self) -> int:
        return len(self.weights)

    @property
    def turns(self) -> float:
        """Full turns of the first knot's phase per unit of the projection."""
        return self.step / (2.0 * math.pi)

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Knots, weights and targets, float64 [multiples] on `device`; made once, as a copy stops the stream."""
        return _tensors(self, device)


@functools.lru_cache(maxsize=64)
def _tensors(quadrature: Quadrature, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    knots = [(j + 1) * quadrature.step for j in range(quadrature.multiples)]
    with torch.inference_mode(False):
        return tuple(
            torch.tensor(values, dtype=torch.float64, device=device)
            for values in (knots, quadrature.weights, quadrature.targets)
        )  # type: ignore[return-value]


@functools.lru_cache(maxsize=64)
def quadrature(settings: Settings, samples: int) -> Quadrature:
    """samples: N, which decides the reach of `h_jepa` and of nothing else."""
    form, intervals = settings.form, settings.num_knots - 1
    if form.standardized:
        return _gaussian_kernel(settings.num_knots, samples)
    if not form.two_sided:
        return _trapezoid(settings.t_max / intervals, intervals)
    step = 2.0 * settings.t_max / intervals
    if intervals % 2 == 0:
        return _trapezoid(step, intervals // 2)
    # An even number of knots from -t_max to t_max misses 0: they are the odd multiples of half a step.
    weights = [0.0] * intervals
    for j in range(0, intervals, 2):
        knot = (j + 1) * step / 2.0
        weights[j] = (1.0 if j == intervals - 1 else 2.0) * step * _gaussian(knot)
    return _against_gaussian(step / 2.0, weights)


def _gaussian(knot: float) -> float:
    return math.exp(-0.5 * knot * knot)


def _trapezoid(step: float, intervals: int) -> Quadrature:
    weights = [2.0 * step * _gaussian(j * step) for j in range(1, intervals + 1)]
    weights[-1] *= 0.5
    return _against_gaussian(step, weights)


def _against_gaussian(step: float, weights: list[float]) -> Quadrature:
    targets = tuple(_gaussian((j + 1) * step) for j in range(len(weights)))
    return Quadrature(step, tuple(weights), targets)


def _gaussian_kernel(references: int, samples: int) -> Quadrature:
    low, high = _QUANTILES
    normal = NormalDist()
    points = [
        normal.inv_cdf(low + (high - low) * j / (references - 1) if references > 1 else low)
        for j in range(references)
    ]
    count = max(samples, 2)
    # Standardised samples are at most this far from each other and from the reference points.
    reach = max(math.sqrt(2.0 * (count - 1)), (count - 1) / math.sqrt(count) + max(map(abs, points)))
    step = 2.0 * math.pi / (reach + _REACH)
    knots = [(j + 1) * step for j in range(math.ceil(_REACH / step))]
    weights = tuple(2.0 * step * normal.pdf(knot) for knot in knots)
    targets = tuple(sum(math.cos(knot * point) for point in points) / references for knot in knots)
    return Quadrature(step, weights, targets)
