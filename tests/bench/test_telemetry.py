"""Clocks, power and throttling from a device that is made up here."""

import types
from collections.abc import Callable

import pytest
import torch

from jepa_fast.bench.measure import Case, ErrorCheck, Trial, run_case
from jepa_fast.bench.measure.telemetry import BLOCK_S, Sampler, open_sampler

POWER_CAP, THERMAL, IDLE = 0x4, 0x40, 0x1


class FakeNVML:
    """As pynvml, for one device whose clock steps by one block at each reading of the power."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, reasons: list[int]) -> None:
        self.reasons = reasons
        self.now = 0.0
        self.number = -1

    def clock(self) -> float:
        return self.now

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        assert handle == "handle"
        self.number += 1
        self.now += BLOCK_S
        return 300_000 + 1000 * self.number  # mW

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        return 1_000_000 + 6000 * self.number  # mJ

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        return self.reasons[self.number % len(self.reasons)]

    def nvmlDeviceGetClockInfo(self, handle: str, which: int) -> int:  # noqa: N802
        return 1980 - 300 * (self.number % 2) if which == self.NVML_CLOCK_SM else 2619

    def nvmlDeviceGetTemperature(self, handle: str, which: int) -> int:  # noqa: N802
        return 60


def test_a_sample_names_what_holds_the_clocks_down() -> None:
    nvml = FakeNVML([POWER_CAP | THERMAL, IDLE])
    first, second = (Sampler(nvml, "handle", nvml.clock).sample() for _ in range(2))
    assert (first.sm_mhz, first.memory_mhz, first.temperature_c) == (1980, 2619, 60)
    assert (first.power_w, first.energy_j) == (300.0, 1000.0)
    assert first.throttling == ["power cap", "hardware thermal slowdown"]
    assert second.throttling == []


def test_a_row_marks_its_throttled_samples() -> None:
    nvml = FakeNVML([IDLE, POWER_CAP])
    watch = Sampler(nvml, "handle", nvml.clock).watch()
    for _ in range(4):
        watch.between()
        watch.between()  # within the same block: no further reading
        nvml.now += BLOCK_S
    found = watch.summary(2e-3)
    assert found is not None
    assert (found.samples, found.throttled_samples, found.throttling) == (5, 2, ["power cap"])
    assert found.sm_mhz_lowest == 1680
    assert found.joules == pytest.approx(24.0)
    assert found.joules_per_call == pytest.approx(302.0 * 2e-3)


def test_what_a_device_does_not_tell_is_left_out() -> None:
    nvml = FakeNVML([0])

    def refuse(*_: object) -> int:
        raise FakeNVML.NVMLError("not supported")

    old = types.SimpleNamespace(
        NVMLError=FakeNVML.NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetPowerUsage=refuse,
        nvmlDeviceGetTotalEnergyConsumption=refuse,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: (
            POWER_CAP
        ),  # an older driver has this name alone
        nvmlDeviceGetClockInfo=nvml.nvmlDeviceGetClockInfo,
        nvmlDeviceGetTemperature=refuse,
    )
    sample = Sampler(old, "handle", nvml.clock).sample()
    assert sample.throttling == ["power cap"]
    assert sample.power_w is sample.energy_j is sample.temperature_c is None
    watch = Sampler(old, "handle", nvml.clock).watch()
    assert watch.summary(1.0) is None
    watch.between()
    found = watch.summary(1.0)
    assert found is not None
    assert found.joules_per_call is None


def test_a_row_of_a_run_carries_it() -> None:
    nvml = FakeNVML([POWER_CAP])
    x = torch.randn(64)
    trial: Callable[[torch.device], Trial] = lambda device: Trial(  # noqa: E731
        x.exp, lambda: ErrorCheck(0.0, 0.0, 0.0, 0.0), "test", {"eager": x.exp}
    )
    (row,) = run_case(
        Case("exp", "64", "float32", trial),
        suite="test",
        device=torch.device("cpu"),
        budget_s=0.05,
        sampler=Sampler(nvml, "handle", nvml.clock),
    )
    assert row.telemetry is not None
    assert row.telemetry.throttled_samples == row.telemetry.samples >= 2


def test_without_a_device_or_nvml_there_is_a_reason() -> None:
    assert "CUDA" in str(open_sampler(torch.device("cpu")))

    def fail() -> None:
        raise FakeNVML.NVMLError("Driver Not Loaded")

    broken = types.SimpleNamespace(NVMLError=FakeNVML.NVMLError, nvmlInit=fail)
    assert open_sampler(torch.device("cuda"), broken) == "NVML does not answer: Driver Not Loaded"
