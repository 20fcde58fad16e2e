"""Peak extra memory of a call, and what it keeps for its backward pass, in bytes."""

import gc
import os
from collections import Counter
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


def saved_for_backward(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Most bytes that autograd keeps at once for the backward passes of `call`, beyond what was there before it.

    Storages are counted, each once: what a view keeps alive is all of it. Parameters and inputs were there before.
    """
    tensors = (found for found in gc.get_objects() if issubclass(type(found), torch.Tensor))
    ledger = _Ledger({_storage(tensor)[0] for tensor in tensors})
    with torch.autograd.graph.saved_tensors_hooks(ledger.pack, _Kept.unpack):
        call()
    return ledger.peak


def _storage(tensor: torch.Tensor) -> tuple[int, int]:
    """Address and bytes; (0, 0) of what has none of its own."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        return 0, 0
    storage = tensor.untyped_storage()
    try:
        return storage.data_ptr(), storage.nbytes()
    except RuntimeError:  # torch.compile leaves functional tensors behind, which have no memory
        return 0, 0


class _Ledger:
    """What is kept now, by storage, and the most that was."""

    def __init__(self, before: set[int]) -> None:
        self.before = before
        self.held = self.peak = 0
        self.users: Counter[int] = Counter()

    def pack(self, tensor: torch.Tensor) -> "_Kept":
        key, size = _storage(tensor)
        return _Kept(self, tensor, *((0, 0) if key in self.before else (key, size)))

    def add(self, key: int, size: int, count: int) -> None:
        was = self.users[key]
        self.users[key] += count
        if key and (was == 0 or self.users[key] == 0):
            self.held += size * count
            self.peak = max(self.peak, self.held)


class _Kept:
    """A saved tensor, which leaves the ledger when autograd lets go of it."""

    def __init__(self, ledger: _Ledger, tensor: torch.Tensor, key: int, size: int) -> None:
        self.ledger, self.tensor, self.key, self.size = ledger, tensor, key, size
        ledger.add(key, size, 1)

    def unpack(self) -> torch.Tensor:
        return self.tensor

    def __del__(self) -> None:
        self.ledger.add(self.key, self.size, -1)


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
