"""A against B on synthetic machines: the clock moves only by what the calls cost."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from jepa_fast.bench.measure import compare, host_overhead
from jepa_fast.bench.measure.compare import ENOUGH_ROUNDS
from jepa_fast.bench.measure.statistics import Interval, judge, noise_floor, ratio_interval


class Machine:
    """A clock and calls that advance it by their cost times log-normal noise, shared bursts included."""

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        self.now = 0
        self.noise = noise
        self.random = np.random.default_rng(seed)
        self.log: list[str] = []

    def clock(self) -> int:
        return self.now

    def call(self, milliseconds: float, name: str = "") -> Callable[..., None]:
        def run(*arguments: object) -> None:
            self.log.append(name)
            self.now += round(milliseconds * 1e6 * math.exp(self.noise * self.random.standard_normal()))

        return run


@pytest.mark.parametrize("seed", range(20))
def test_a_callable_against_itself_is_never_faster_or_slower(seed: int) -> None:
    machine = Machine(noise=0.1, seed=seed)
    found = compare(machine.call(1.0), machine.call(1.0), budget_s=1.0, clock=machine.clock)
    assert found.verdict in ("same", "cannot tell")


def test_equal_callables_on_a_quiet_machine_are_the_same() -> None:
    machine = Machine(noise=0.01)
    found = compare(machine.call(1.0), machine.call(1.0), budget_s=1.0, clock=machine.clock)
    assert found.verdict == "same"
    assert found.ci_low <= 1.0 <= found.ci_high


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("ours", "baseline", "verdict"), [(1.0, 1.3, "faster"), (1.3, 1.0, "slower")])
def test_a_real_difference_is_found_in_noise(ours: float, baseline: float, verdict: str, seed: int) -> None:
    machine = Machine(noise=0.1, seed=seed)
    found = compare(machine.call(ours), machine.call(baseline), budget_s=1.0, clock=machine.clock)
    assert found.verdict == verdict
    assert found.ci_low < baseline / ours < found.ci_high
    assert found.median_a == pytest.approx(ours * 1e-3, rel=0.1)
    assert found.median_b == pytest.approx(baseline * 1e-3, rel=0.1)


def test_a_difference_below_the_noise_cannot_be_told() -> None:
    machine = Machine(noise=1.0)
    found = compare(machine.call(10.0), machine.call(10.5), budget_s=0.2, clock=machine.clock)
    assert found.verdict == "cannot tell"
    assert found.noise_floor > 1.1


def test_drift_that_slows_both_leaves_the_ratio_alone() -> None:
    machine = Machine()
    ours, baseline = machine.call(1.0), machine.call(1.3)
    speeds = iter(np.geomspace(1.0, 20.0, 10_000))

    def drifting(call: Callable[..., None]) -> Callable[[], None]:
        def run() -> None:
            before = machine.now
            call()
            machine.now = before + round((machine.now - before) * next(speeds))

        return run

    found = compare(drifting(ours), drifting(baseline), budget_s=1.0, clock=machine.clock)
    assert found.ratio == pytest.approx(1.3, rel=0.01)


def test_measuring_stops_when_the_interval_is_narrow_or_the_budget_is_spent() -> None:
    quiet = Machine(noise=0.001)
    found = compare(quiet.call(1.0), quiet.call(1.3), budget_s=60.0, clock=quiet.clock)
    assert found.a.count == ENOUGH_ROUNDS

    noisy = Machine(noise=1.0)
    found = compare(noisy.call(1.0), noisy.call(1.3), budget_s=0.5, clock=noisy.clock)
    assert 0.5e9 <= noisy.now < 0.6e9
    assert found.a.count == found.b.count >= 7


def test_calls_interleave_in_every_order_on_the_inputs_in_turn() -> None:
    machine = Machine()
    seen: list[tuple[str, int]] = []

    def record(name: str) -> Callable[[int], None]:
        def run(value: int) -> None:
            machine.now += 10**6
            seen.append((name, value))

        return run

    arguments = [(0,), (1,), (2,)]
    compare(record("a"), record("b"), min_rounds=6, inputs=arguments, clock=machine.clock)
    warm_up, rounds = seen[:8], [seen[i : i + 3] for i in range(8, len(seen), 3)]
    assert warm_up == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 0), ("b", 0)]
    assert [{value for _, value in calls} for calls in rounds] == [{i % 3} for i in range(len(rounds))]
    assert all(sorted(name for name, _ in calls) == ["a", "a", "b"] for calls in rounds)
    assert {tuple(name for name, _ in calls) for calls in rounds[:6]} == {
        ("a", "b", "a"),
        ("a", "a", "b"),
        ("b", "a", "a"),
    }


def test_the_setup_hook_runs_before_every_call_outside_the_time() -> None:
    machine = Machine()
    found = compare(
        machine.call(0.001, "call"),
        machine.call(0.002, "call"),
        before_each=machine.call(5.0, "setup"),
        clock=machine.clock,
    )
    assert machine.log[0::2] == ["setup"] * (len(machine.log) // 2)
    assert machine.log[1::2] == ["call"] * (len(machine.log) // 2)
    assert found.median_a == pytest.approx(1e-6)


def test_a_call_too_short_for_the_clock_is_repeated_inside_its_sample() -> None:
    machine = Machine()
    found = compare(machine.call(0.001, "a"), machine.call(0.002, "b"), min_rounds=2, clock=machine.clock)
    assert machine.log.count("b") >= 2 * 50  # two rounds of at least 50 us of a 1 us call
    assert found.median_a == pytest.approx(1e-6)
    assert found.ratio == pytest.approx(2.0)


def test_host_overhead_is_the_difference_in_microseconds() -> None:
    machine = Machine()
    found = host_overhead(machine.call(0.005), machine.call(0.002), clock=machine.clock)
    assert found.microseconds == pytest.approx(3.0)
    assert (found.call.median, found.raw_launch.median) == (pytest.approx(5e-6), pytest.approx(2e-6))


def test_the_interval_of_swapped_series_is_the_reciprocal() -> None:
    random = np.random.default_rng(0)
    a, b = random.lognormal(0.0, 0.2, 101), random.lognormal(0.3, 0.2, 101)
    forward, backward = ratio_interval(b.tolist(), a.tolist()), ratio_interval(a.tolist(), b.tolist())
    assert forward.ratio == pytest.approx(1 / backward.ratio)
    assert forward.low == pytest.approx(1 / backward.high, rel=0.02)  # the same resamples, mirrored
    assert forward.low < math.exp(0.3) < forward.high


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        a, b = random.lognormal(0.0, 0.2, 40), random.lognormal(0.1, 0.2, 40)
        interval = ratio_interval(b.tolist(), a.tolist())
        covered += interval.low <= math.exp(0.1) <= interval.high
    assert covered >= 180  # 95 % of 200 is 190, with a standard deviation of 3


@pytest.mark.parametrize(
    ("low", "high", "floor", "verdict"),
    [
        (1.10, 1.30, 1.05, "faster"),
        (1.04, 1.30, 1.05, "cannot tell"),  # the low end is inside the noise
        (0.70, 0.90, 1.05, "slower"),
        (0.70, 0.96, 1.05, "cannot tell"),
        (0.99, 1.02, 1.01, "same"),
        (0.99, 1.02, 1.20, "cannot tell"),  # too noisy a machine to call anything the same
        (0.80, 1.20, 1.01, "cannot tell"),
    ],
)
def test_verdicts(low: float, high: float, floor: float, verdict: str) -> None:
    assert judge(Interval(math.sqrt(low * high), low, high), floor) == verdict


def test_the_noise_floor_is_the_far_end_of_the_interval() -> None:
    assert noise_floor(Interval(1.0, 0.8, 1.1)) == pytest.approx(1.25)
    assert noise_floor(Interval(1.0, 1.0, 1.0)) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget_s": 0.0}, "budget_s: expected seconds above 0, got 0.0"),
        ({"precision": 0.0}, "precision: expected a share above 0, got 0.0"),
        ({"min_rounds": 1}, "min_rounds: expected at least 2, got 1"),
        ({"inputs": []}, "inputs: expected at least one argument tuple, got none"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        compare(lambda: None, lambda: None, **arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_events_find_the_longer_of_two_sleeps() -> None:
    found = compare(
        lambda: torch.cuda._sleep(1_000_000),
        lambda: torch.cuda._sleep(2_000_000),
        budget_s=1.0,
        device="cuda",
    )
    assert found.verdict == "faster"
    assert found.ratio == pytest.approx(2.0, rel=0.1)
