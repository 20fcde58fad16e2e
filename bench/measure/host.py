"""What a public op costs on the host beyond the launch of its kernel."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from jepa_fast.bench.measure.compare import Clock, Times, compare


@dataclass(frozen=True)
class HostOverhead:
    """Microseconds of the public call beyond its raw launch, and the times of both."""

    microseconds: float
    call: Times
    raw_launch: Times


def host_overhead(
    call: Callable[..., object],
    raw_launch: Callable[..., object],
    *,
    budget_s: float = 1.0,
    clock: Clock = time.perf_counter_ns,
) -> HostOverhead:
    """The cost of `call`, the public op on tiny inputs, less that of `raw_launch`, its prepared launch.

    Both are timed by the wall clock, interleaved, on inputs that make the work itself negligible. On CUDA the
    launches are not waited for: such kernels are shorter than the host's share, so the queue does not fill.
    """
    found = compare(call, raw_launch, budget_s=budget_s, clock=clock)
    return HostOverhead((found.median_a - found.median_b) * 1e6, found.a, found.b)
