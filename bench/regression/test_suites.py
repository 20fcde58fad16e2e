"""The suites' cases through pytest-benchmark, with its own files and comparisons.

    pytest bench/regression --benchmark-json out.json
    pytest bench/regression --benchmark-save base
    pytest bench/regression --benchmark-compare --benchmark-compare-fail median:10%

On CUDA the timer counts device time; on the CPU it is the wall clock. A case is timed only after its errors passed. Two
such runs are minutes apart: `jepa-fast compare` measures both versions in turn, and tells far smaller changes.
"""

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

from jepa_fast.bench import suites
from jepa_fast.bench.measure import Case
from jepa_fast.bench.measure.device_time import DeviceTimer
from jepa_fast.bench.measure.names import check_known
from jepa_fast.bench.measure.peers import GROUPS, NAMES, choose, expanded

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SECONDS = 0.5  # of a case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = _split(metafunc.config.getoption("--suites"))
    against = _split(metafunc.config.getoption("--against"))
    try:
        check_known("--suites", chosen, suites.names())
        check_known("--against", against, {*NAMES, *GROUPS})
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    marks = [pytest.mark.benchmark(min_rounds=5, max_time=SECONDS, warmup=True, warmup_iterations=1)]
    if DEVICE.type == "cuda":
        marks.append(pytest.mark.benchmark(timer=DeviceTimer(DEVICE)))
    cases = []
    for name in chosen or suites.names():
        for case in suites.load(name).cases():
            wanted = case.quick or metafunc.config.getoption("--all-cases")
            if wanted and (DEVICE.type == "cuda" or not case.needs_cuda):
                label = f"{name}, {case.op}, {case.shape}, {case.dtype}"
                cases += [
                    pytest.param(case, runs, marks=marks, id=f"{label}, {runs}")
                    for runs in ("ours", *expanded(against))
                ]
    metafunc.parametrize(("case", "runs"), cases)


def test_case(case: Case, runs: str, benchmark: "BenchmarkFixture") -> None:
    trial = case.build(DEVICE)
    if trial.own_times is not None:
        pytest.skip("it takes its own times: `jepa-fast bench` runs it")
    check = trial.check()
    assert check.passed, check.reason
    call = trial.ours
    if runs != "ours":
        found = choose(trial.baselines, trial.on_request, [runs], DEVICE)
        if not found:
            pytest.skip(f"{runs}: this case has no such peer, or it cannot run here")
        call = next(iter(found.values()))
    benchmark.extra_info |= {"error_ratio": check.ratio, "implementation": trial.implementation}
    benchmark(partial(call, *trial.inputs[0]))


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
