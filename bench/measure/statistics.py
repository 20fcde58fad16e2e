"""From two paired series of times to a ratio, its confidence interval and a verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["faster", "slower", "same", "cannot tell"]

CONFIDENCE = 0.95
RESAMPLES = 2000  # the 2.5 % tail then holds 50 resamples
SAME_WITHIN = 0.03  # two callables are the same when their ratio surely lies within 3 % of 1


@dataclass(frozen=True)
class Interval:
    """A ratio of times with the bounds of its confidence interval."""

    ratio: float
    low: float
    high: float


def ratio_interval(times_b: Sequence[float], times_a: Sequence[float]) -> Interval:
    """Median over the rounds of `times_b / times_a`, with a bootstrap interval.

    The two series are paired by round: what disturbs the machine for longer than a round slows both and
    leaves their ratio alone, which the ratio of two medians would not. The logarithm is resampled, so that
    swapping the series gives the reciprocal.
    """
    logs = np.log(np.asarray(times_b, dtype=np.float64)) - np.log(np.asarray(times_a, dtype=np.float64))
    centre = float(np.median(logs))
    if np.ptp(logs) == 0:  # nothing to resample; scipy would warn of a degenerate distribution
        return Interval(math.exp(centre), math.exp(centre), math.exp(centre))
    low, high = _bootstrap_bounds(logs)
    return Interval(math.exp(centre), math.exp(low), math.exp(high))


def _bootstrap_bounds(values: np.ndarray) -> tuple[float, float]:
    """Of the median. Where scipy is not installed, its percentile method by hand: the same up to the random draws."""
    random = np.random.default_rng(0)
    try:
        from scipy.stats import bootstrap
    except ImportError:
        resampled = np.median(random.choice(values, (RESAMPLES, len(values))), axis=1)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(resampled, (tail, 1 - tail))
        return float(low), float(high)
    bounds = bootstrap(
        (values,),
        np.median,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=random,
    ).confidence_interval
    return float(bounds.low), float(bounds.high)


def noise_floor(again: Interval) -> float:
    """The largest ratio, at least 1, that this interval of a callable against itself does not rule out."""
    return math.exp(max(abs(math.log(again.low)), abs(math.log(again.high))))


def judge_change(interval: Interval, floor: float, allowed: float = 0.0) -> Verdict:
    """The verdict on a new version whose `time_new / time_old` has this interval.

    A change is one only past the noise floor and past 3 %: two processes of the same program differ by more than what
    one of them sees against itself, as memory and threads are placed anew. allowed: a share on top, for `slower` alone.
    """
    least = max(floor, 1 + SAME_WITHIN)
    if interval.low > max(least, 1 + allowed):
        return "slower"
    if interval.high < 1 / least:
        return "faster"
    margin = 1 + SAME_WITHIN
    if floor <= margin and 1 / margin <= interval.low and interval.high <= margin:
        return "same"
    return "cannot tell"


def judge(interval: Interval, floor: float) -> Verdict:
    """The verdict on A whose `time_b / time_a` has this interval, on a machine with this noise floor."""
    if interval.low > floor:
        return "faster"
    if interval.high < 1 / floor:
        return "slower"
    margin = 1 + SAME_WITHIN
    if floor <= margin and 1 / margin <= interval.low and interval.high <= margin:
        return "same"
    return "cannot tell"
