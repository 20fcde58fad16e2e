"""Peak extra memory of a call, in bytes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Most bytes that PyTorch's allocator held for `call` beyond what it held before; what it returns counts.

    On CUDA the allocator's own peak counter; on the CPU the running sum of every allocation and release,
    which the profiler reports one by one, so both are exact and see the temporaries inside an operator.
    Native kernels of this project allocate through PyTorch and are seen. Not seen: scratch that a library
    takes from the system for itself (oneDNN, OpenBLAS, cuBLAS workspaces outside the pool), thread stacks,
    and Python objects. On the CPU a release of memory that is older than the call gives no credit.
    """
    device = torch.device(device)
    return _peak_on_cuda(call, device) if device.type == "cuda" else _peak_on_cpu(call)


def _peak_on_cuda(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(call: Callable[[], object]) -> int:
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _silent_stderr(), profiler:
        call()
    recorded: Any = profiler.profiler
    events = (event for event in recorded.kineto_results.events() if event.name() == "[memory]")
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative for a release
        peak = max(peak, held)
    return peak


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler writes to file descriptor 2 when it starts, stops, and meets an older block."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
