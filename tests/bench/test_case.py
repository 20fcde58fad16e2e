"""What becomes of a case: times only after its errors passed, and a reason for whatever could not run."""

from collections.abc import Callable

import pytest
import torch

from jepa_fast.bench.measure import Case, ErrorCheck, OwnTimes, Row, Times, Trial, check_error, run_case

CPU = torch.device("cpu")
X = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


def check(kernel: Callable[[], torch.Tensor]) -> ErrorCheck:
    return check_error([kernel()], [X.softmax(-1)], [X.double().softmax(-1)])


def rows_of(build: Callable[[torch.device], Trial]) -> list[Row]:
    case = Case("softmax", "64x64", "float32", build)
    return run_case(case, suite="test", device=CPU, budget_s=0.05)


def good() -> torch.Tensor:
    return X.softmax(-1)


def wrong() -> torch.Tensor:
    return X.softmax(-1) * 1.001


def test_a_right_case_has_a_full_row_per_baseline() -> None:
    baselines = {"one": good, "two": lambda: X.exp() / X.exp().sum(-1, keepdim=True)}
    first, second = rows_of(lambda device: Trial(good, lambda: check(good), "test", baselines))
    assert (first.baseline, second.baseline) == ("one", "two")
    for row in (first, second):
        assert row.reason == ""
        assert row.time is not None
        assert row.time.median > 0
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.noise_floor >= 1
        assert row.verdict in ("faster", "slower", "same", "cannot tell")
        assert row.error_ratio == pytest.approx(first.error / first.eager_error)
        assert row.peak_bytes == X.nbytes
    assert second.baseline_peak_bytes > X.nbytes


def test_a_wrong_kernel_has_a_reason_and_no_time() -> None:
    calls = []

    def timed() -> torch.Tensor:
        calls.append(1)
        return wrong()

    (row,) = rows_of(lambda device: Trial(timed, lambda: check(wrong), "test", {"eager": good}))
    assert row.reason.startswith("output 0: relative error ")
    assert row.time is row.ratio is row.verdict is row.peak_bytes is None
    assert row.error > row.eager_error
    assert not calls


def test_what_cannot_be_built_has_a_reason() -> None:
    def build(device: torch.device) -> Trial:
        raise RuntimeError("implementation: native cannot serve\nema: no library")

    (row,) = rows_of(build)
    assert row.reason == "RuntimeError: implementation: native cannot serve ema: no library"
    assert row.time is None


def test_a_baseline_that_fails_costs_only_its_own_row() -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("too large")

    broken, fine = rows_of(
        lambda device: Trial(good, lambda: check(good), "test", {"broken": fail, "fine": good})
    )
    assert broken.reason == "OutOfMemoryError: too large"
    assert broken.time is None
    assert fine.reason == ""
    assert fine.time is not None


def test_host_cost_is_a_row_against_the_raw_launch() -> None:
    (row,) = rows_of(lambda device: Trial(good, lambda: check(good), "test", raw_launch=lambda: None))
    assert row.baseline == "raw launch"
    assert row.host_overhead_us == pytest.approx((row.time.median - row.baseline_time.median) * 1e6)
    assert row.verdict is None


def test_what_takes_its_own_times_runs_when_it_is_named() -> None:
    times = Times(1.0, 0.9, 1.1, 9)
    trial = Trial(good, lambda: check(good), "test", own_times=lambda: OwnTimes(times, "warm", times))
    case = Case("softmax", "64x64", "float32", lambda device: trial)
    for against, baselines in (
        ((), ["warm"]),
        (("cold",), ["warm"]),
        (("eager",), []),
        (("raw-launch",), []),
    ):
        rows = run_case(case, suite="test", device=CPU, budget_s=0.05, against=against)
        assert [row.baseline for row in rows] == baselines


def test_peak_memory_is_the_largest_over_the_inputs() -> None:
    inputs = [(torch.empty(size, dtype=torch.uint8),) for size in (1000, 3000, 2000)]
    (row,) = rows_of(
        lambda device: Trial(torch.clone, lambda: check(good), "test", {"clone": torch.clone}, inputs)
    )
    assert row.peak_bytes == 3000
