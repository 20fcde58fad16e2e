"""A and B side by side: interleaved call by call until the answer is sure or the budget is spent."""

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from jepa_fast.bench.measure.statistics import Verdict, judge, noise_floor, ratio_interval

Clock = Callable[[], int]  # nanoseconds, never going back
Call = Callable[..., object]
Stopwatch = Callable[[Callable[[], object], int], float]  # (call, repeats) -> seconds of one call

# A sample is at least this long, or its call is repeated inside it: a thousand times the cost of reading the
# clock (about 50 ns), and of the resolution of a CUDA event (about 1 us).
SHORTEST_WALL_SAMPLE_S = 50e-6
SHORTEST_CUDA_SAMPLE_S = 1e-3
MOST_REPEATS = 1000
ENOUGH_ROUNDS = 30  # before measuring may stop early: a bootstrap of fewer is too sure of itself
MOST_ROUNDS = 1000  # the interval narrows with the root of the rounds: past this, drift is all that is left
WARM_UP_SHARE = 0.25  # of the budget


@dataclass(frozen=True)
class Times:
    """Seconds of one call over the rounds."""

    median: float
    p10: float
    p90: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Times":
        p10, median, p90 = (float(q) for q in np.quantile(samples, (0.1, 0.5, 0.9)))
        return cls(median, p10, p90, len(samples))

    def per_call(self, calls: int) -> "Times":
        """Of one call, where a sample held so many."""
        return Times(self.median / calls, self.p10 / calls, self.p90 / calls, self.count)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. A ratio above 1 says that A is that many times faster than B."""

    ratio: float
    ci_low: float
    ci_high: float
    noise_floor: float
    verdict: Verdict
    a: Times
    b: Times
    again: Times

    @classmethod
    def of(
        cls,
        times_a: Sequence[float],
        times_b: Sequence[float],
        twins: tuple[Sequence[float], Sequence[float]],
    ) -> "Comparison":
        """From seconds per round. twins: the same callable's seconds, taken twice in each round."""
        interval, floor = ratio_interval(times_b, times_a), noise_floor(ratio_interval(*twins))
        return cls(
            interval.ratio,
            interval.low,
            interval.high,
            floor,
            judge(interval, floor),
            *(Times.of(times) for times in (times_a, times_b, twins[1])),
        )

    def per_call(self, calls: int) -> "Comparison":
        """Where every sample held `calls` calls: the same ratio, with the times of one."""
        a, b, again = (times.per_call(calls) for times in (self.a, self.b, self.again))
        return replace(self, a=a, b=b, again=again)

    @property
    def spread(self) -> float:
        """Relative half-width of the interval, or distance of the noise floor from 1 if that is more."""
        return max(math.log(self.ci_high / self.ci_low) / 2, math.log(self.noise_floor))

    @property
    def median_a(self) -> float:
        return self.a.median

    @property
    def median_b(self) -> float:
        return self.b.median


def compare(
    a: Call,
    b: Call,
    *,
    budget_s: float = 2.0,
    min_rounds: int = 7,
    precision: float = 0.02,
    inputs: Sequence[tuple[Any, ...]] = ((),),
    before_each: Callable[[], object] | None = None,
    device: torch.device | str = "cpu",
    clock: Clock = time.perf_counter_ns,
    between: Callable[[], object] = lambda: None,
) -> Comparison:
    """How many times faster `a` is than the baseline `b`, and whether this machine can tell.

    One round calls A, B and A once more on the same inputs, in an order that rotates; the ratio of the two A
    is the noise floor. From 30 rounds on, measuring stops when the confidence interval and the floor are both
    narrower than `precision`; before that only when the budget is spent.

    a, b: called as `a(*inputs[round])`; what they return is dropped.
    budget_s: wall seconds for the warm-up and the rounds; one warm-up call of each and `min_rounds` rounds
    are made even where that takes longer. min_rounds: at least 2.
    precision: relative half-width of the intervals at which measuring stops.
    inputs: argument tuples, one per round in turn, for calls whose cost depends on them (a step's masks).
    before_each: called before every timed call, outside the time; no call is repeated inside a sample then.
    device: "cpu" times by the wall clock, "cuda" synchronises and times by a pair of events.
    clock: the wall clock, in nanoseconds.
    between: called between rounds, outside the time.

    Raises ValueError for a budget or precision not above 0, fewer than 2 rounds, or no inputs.
    """
    if budget_s <= 0:
        raise ValueError(f"budget_s: expected seconds above 0, got {budget_s}")
    if precision <= 0:
        raise ValueError(f"precision: expected a share above 0, got {precision}")
    if min_rounds < 2:
        raise ValueError(f"min_rounds: expected at least 2, got {min_rounds}")
    if not inputs:
        raise ValueError("inputs: expected at least one argument tuple, got none")

    device = torch.device(device)
    on_cuda = device.type == "cuda"
    stopwatch = cuda_stopwatch(device) if on_cuda else _wall_stopwatch(clock)
    started = clock()

    def spent() -> float:
        return (clock() - started) / 1e9

    def sample(call: Call, arguments: tuple[Any, ...], repeats: int) -> float:
        if before_each is not None:
            before_each()
        return stopwatch(lambda: call(*arguments), repeats)

    fastest = math.inf
    for arguments in (*inputs, inputs[0]):  # a very first call may be far slower than the rest
        fastest = min(fastest, sample(a, arguments, 1), sample(b, arguments, 1))
        if spent() > WARM_UP_SHARE * budget_s:
            break
    shortest = SHORTEST_CUDA_SAMPLE_S if on_cuda else SHORTEST_WALL_SAMPLE_S
    repeats = 1
    if before_each is None and fastest < shortest:
        repeats = min(MOST_REPEATS, math.ceil(shortest / max(fastest, shortest / MOST_REPEATS)))

    arms: tuple[Call, Call, Call] = (a, b, a)
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    orders = itertools.cycle(itertools.permutations(range(3)))
    check_at = max(min_rounds, ENOUGH_ROUNDS)
    with _no_garbage_collection():
        for rounds, (order, arguments) in enumerate(
            zip(orders, itertools.cycle(inputs), strict=False), start=1
        ):
            between()
            for arm in order:
                times[arm].append(sample(arms[arm], arguments, repeats))
            last = rounds == MOST_ROUNDS or (rounds >= min_rounds and spent() >= budget_s)
            if last or rounds == check_at:
                found = Comparison.of(times[0], times[1], twins=(times[0], times[2]))
                if last or found.spread <= precision:
                    break
                check_at = math.ceil(1.5 * rounds)  # resampling costs milliseconds: not after every round
    return found


def measure_alone(call: Call, *, device: torch.device | str = "cpu", budget_s: float = 0.5) -> Times:
    """Times of one callable by itself, after a warm-up: for what has no peer, such as the machine's own speed."""
    device = torch.device(device)
    stopwatch = cuda_stopwatch(device) if device.type == "cuda" else _wall_stopwatch(time.perf_counter_ns)
    deadline = time.perf_counter() + budget_s
    stopwatch(call, 1)
    samples = [stopwatch(call, 1)]
    while time.perf_counter() < deadline and len(samples) < MOST_ROUNDS:
        samples.append(stopwatch(call, 1))
    return Times.of(samples)


def _wall_stopwatch(clock: Clock) -> Stopwatch:
    def time_call(call: Callable[[], object], repeats: int) -> float:
        begin = clock()
        for _ in range(repeats):
            call()
        return (clock() - begin) / 1e9 / repeats

    return time_call


def cuda_stopwatch(device: torch.device) -> Stopwatch:
    """Device time, by a pair of events round the calls."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def time_call(call: Callable[[], object], repeats: int) -> float:
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    return time_call


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
