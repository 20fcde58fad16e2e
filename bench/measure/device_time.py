"""Device time without the host in it: CUDA graphs of several calls, on sets of tensors that rotate past the cache."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import torch

from jepa_fast.bench.measure.compare import Call, Comparison, Times, compare, measure_alone

if TYPE_CHECKING:
    from jepa_fast.bench.measure.case import Trial

CACHE_TURNS = 3.0  # the sets together are so many times the L2 cache
MOST_SETS = 64
MEMORY_SHARE = 0.5  # of what is free, for further sets
SHORTEST_REPLAY_S = 200e-6  # a graph's own launch takes some microseconds
MOST_CALLS = 256  # in one graph
WARM_CALLS = 3  # before a capture: compilation, tuning and workspaces are none of it
HOST_CALLS = 30


class Replays:
    """The sets of tensors of one case, each a trial that was built anew, and the graphs of its calls.

    Equal seeds give the sets equal values, so that all baselines and our call see the same data.
    """

    def __init__(
        self, build: "Callable[[torch.device], Trial]", first: "Trial", device: torch.device
    ) -> None:
        self.build, self.device = build, device
        self.sets = [first]
        self._size: int | None = None

    def grow(self) -> None:
        """Build further sets until a call finds nothing of its inputs in the cache, as far as memory goes."""
        if self._size is not None or len(self.sets[0].inputs) > 1:
            return
        before = torch.cuda.memory_allocated(self.device)
        self.sets.append(self.build(self.device))
        self._size = max(1, torch.cuda.memory_allocated(self.device) - before)
        free, _ = torch.cuda.mem_get_info(self.device)
        count = sets_needed(self._size, torch.cuda.get_device_properties(self.device).L2_cache_size, free)
        while len(self.sets) < count:
            self.sets.append(self.build(self.device))

    def host_time(self, trial: "Trial") -> Times:
        """Wall seconds to issue one call of ours, the queue empty before it."""
        seconds = []
        for number in range(HOST_CALLS):
            arguments = trial.inputs[number % len(trial.inputs)]
            torch.cuda.synchronize(self.device)
            begin = time.perf_counter()
            trial.ours(*arguments)
            seconds.append(time.perf_counter() - begin)
        torch.cuda.synchronize(self.device)
        return Times.of(seconds)


def sets_needed(size: int, cache: int, free: int) -> int:
    """How many sets of `size` bytes pass three times the cache, within half of the free memory."""
    return max(1, min(MOST_SETS, math.ceil(CACHE_TURNS * cache / size), 1 + int(MEMORY_SHARE * free / size)))


def calls_needed(sets: int, seconds: float) -> int:
    """How many calls a graph holds: every set once, and more of them until a replay is long against its launch."""
    turns = max(1, math.ceil(SHORTEST_REPLAY_S / max(seconds, 1e-9) / sets))
    return sets * max(1, min(turns, MOST_CALLS // sets))


def compare_replays(
    replays: Replays,
    name: str,
    baseline: Call,
    *,
    budget_s: float,
    between: Callable[[], object] = lambda: None,
) -> Comparison | None:
    """Our calls against those of the baseline of that name, as graphs; None if one of them cannot be captured.

    What reads a value back to the host, draws from a generator that no graph knows, or changes its inputs from call to
    call cannot; such calls are timed eagerly.
    """
    if len(replays.sets[0].inputs) > 1:
        return None
    try:
        replays.grow()
        device = replays.device
        quickest = measure_alone(replays.sets[0].ours, device=device, budget_s=0.05).median
        calls = calls_needed(len(replays.sets), quickest)
        theirs = [_baseline(trial, name, baseline) for trial in replays.sets]
        ours = captured([trial.ours for trial in replays.sets], calls, device)
        other = captured(theirs, calls, device)
    except Exception:
        with suppress(Exception):  # a broken capture leaves an error behind, once
            torch.cuda.synchronize(replays.device)
        return None
    return compare(ours, other, budget_s=budget_s, device=device, between=between).per_call(calls)


def captured(calls: Sequence[Call], count: int, device: torch.device) -> Callable[[], None]:
    """A graph of `count` calls, those of the list in turn; calling it replays it."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_CALLS):
            for call in calls:
                call()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(count):
            calls[number % len(calls)]()
    return partial(graph.replay)


def _baseline(trial: "Trial", name: str, call: Call) -> Call:
    """That baseline of another set; one that was made for the first set alone serves for all."""
    return {**trial.on_request, **trial.baselines}.get(name, call)


class DeviceTimer:
    """A clock in seconds that stands where the device stands: for tools that take a clock, such as pytest-benchmark.

    Each reading waits for the device. Times between readings are added up in float64, as an event pair gives
    milliseconds in float32, whose resolution shrinks with the distance.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self._last: torch.cuda.Event | None = None

    def __call__(self) -> float:
        now = torch.cuda.Event(enable_timing=True)
        now.record(torch.cuda.current_stream(self.device))
        now.synchronize()
        if self._last is not None:
            self.seconds += self._last.elapsed_time(now) / 1e3
        self._last = now
        return self.seconds
