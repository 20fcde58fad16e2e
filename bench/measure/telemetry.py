"""Clocks, power, temperature and throttling of an NVIDIA GPU while a row is timed, by NVML."""

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch

BLOCK_S = 0.02  # between two samples: NVML renews its power reading about as often, and an answer takes a part of a ms

# nvml.h, nvmlClocksEventReasons; what is left out (idle, clocks that somebody asked for) is no throttling.
THROTTLING = {
    0x0000000000000004: "power cap",
    0x0000000000000008: "hardware slowdown",
    0x0000000000000010: "sync boost",
    0x0000000000000020: "software thermal slowdown",
    0x0000000000000040: "hardware thermal slowdown",
    0x0000000000000080: "hardware power brake",
}


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One reading; what a device does not tell is None. throttling: the reasons that hold the clocks down."""

    seconds: float
    sm_mhz: int | None
    memory_mhz: int | None
    power_w: float | None
    energy_j: float | None
    temperature_c: int | None
    throttling: list[str]


class Telemetry(msgspec.Struct, frozen=True, kw_only=True):
    """Of a row: medians over its samples, and how many of them were taken while the GPU was throttled.

    joules: of the whole device over the row's rounds, both sides together. joules_per_call: median power times the time
    of our call.
    """

    samples: int
    throttled_samples: int
    throttling: list[str]
    sm_mhz: float | None
    sm_mhz_lowest: float | None
    memory_mhz: float | None
    power_w: float | None
    temperature_c: float | None
    joules: float | None
    joules_per_call: float | None


class Sampler:
    """Reads one device. nvml: the module pynvml, or one that does as it does."""

    def __init__(self, nvml: Any, handle: Any, clock: Callable[[], float] = time.perf_counter) -> None:
        self.nvml, self.handle, self.clock = nvml, handle, clock

    def sample(self) -> Sample:
        nvml = self.nvml
        power = self._read("nvmlDeviceGetPowerUsage")
        energy = self._read("nvmlDeviceGetTotalEnergyConsumption")
        # The newer name first; drivers before 535 have the older one alone.
        bits = self._read("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            bits = self._read("nvmlDeviceGetCurrentClocksThrottleReasons")
        return Sample(
            seconds=self.clock(),
            sm_mhz=self._read("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            memory_mhz=self._read("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            power_w=None if power is None else power / 1e3,
            energy_j=None if energy is None else energy / 1e3,
            temperature_c=self._read("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            throttling=[name for bit, name in THROTTLING.items() if (bits or 0) & bit],
        )

    def watch(self) -> "Watch":
        """For one row: call `between` between its rounds."""
        return Watch(self)

    def _read(self, function: str, *arguments: Any) -> Any:
        """None where this device or this driver does not tell."""
        try:
            return getattr(self.nvml, function)(self.handle, *arguments)
        except (AttributeError, self.nvml.NVMLError):
            return None


class Watch:
    """The samples of one row, at most one for each block of time."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.samples: list[Sample] = []

    def between(self) -> None:
        if not self.samples or self.sampler.clock() - self.samples[-1].seconds >= BLOCK_S:
            self.samples.append(self.sampler.sample())

    def summary(self, seconds_of_a_call: float) -> Telemetry | None:
        """Of the row whose call of ours takes that long; None without a sample."""
        if not self.samples:
            return None
        self.samples.append(self.sampler.sample())
        reasons = sorted({reason for sample in self.samples for reason in sample.throttling})
        sm = _told(self.samples, "sm_mhz")
        power = _median(_told(self.samples, "power_w"))
        energy = _told(self.samples, "energy_j")
        return Telemetry(
            samples=len(self.samples),
            throttled_samples=sum(bool(sample.throttling) for sample in self.samples),
            throttling=reasons,
            sm_mhz=_median(sm),
            sm_mhz_lowest=min(sm, default=None),
            memory_mhz=_median(_told(self.samples, "memory_mhz")),
            power_w=power,
            temperature_c=_median(_told(self.samples, "temperature_c")),
            joules=energy[-1] - energy[0] if len(energy) > 1 else None,
            joules_per_call=None if power is None else power * seconds_of_a_call,
        )


def open_sampler(device: torch.device, nvml: Any = None) -> Sampler | str:
    """A sampler of that device, or why there is none. nvml: instead of the module pynvml."""
    if device.type != "cuda":
        return "clocks, power and temperature are read on CUDA devices alone"
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return "pynvml is not installed; `pip install nvidia-ml-py` adds clocks, power and temperature"
    try:
        nvml.nvmlInit()
        return Sampler(nvml, _handle(nvml, device))
    except nvml.NVMLError as error:
        return f"NVML does not answer: {error}"


def _handle(nvml: Any, device: torch.device) -> Any:
    """By UUID: NVML counts all devices, CUDA those that CUDA_VISIBLE_DEVICES leaves, in an order of its own."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is None:
        return nvml.nvmlDeviceGetHandleByIndex(device.index or 0)
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")


def _told(samples: list[Sample], name: str) -> list[float]:
    return [value for sample in samples if (value := getattr(sample, name)) is not None]


def _median(values: list[float]) -> float | None:
    return float(statistics.median(values)) if values else None
