"""The processes of a run that `torchrun` starts: who is who, and what they tell each other."""

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """rank: of this process among `size`. device: what it computes on."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Of all processes the one that writes."""
        return self.rank == 0

    def share(self, batch_size: int) -> tuple[int, int]:
        """First and last + 1 of the samples of a batch that are this process's."""
        own = batch_size // self.size
        return self.rank * own, (self.rank + 1) * own

    def mean(self, values: Tensor) -> Tensor:
        """Over all processes. Waits for them."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.size
        return values

    def largest(self, *numbers: int) -> list[int]:
        """Of all processes, number by number. Waits for them."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, device=self.device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return [int(value) for value in values.tolist()]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


class Meetings:
    """Processes tell each other of signals at the same steps, about every `seconds`.

    How many steps that is they agree on at each meeting, from what the steps before took: the clock of one alone would
    have it wait where the others do not. torchrun kills 30 seconds after its SIGTERM.
    """

    def __init__(self, world: World, seconds: float = 2.0) -> None:
        self._world, self._seconds = world, seconds
        self._since = time.monotonic()
        self._last: int | None = None
        self._next = 0
        self._interval = 1

    def heard(self, done: int, signal: int) -> int:
        """The largest signal of all processes at a meeting after step `done`, else 0; alone, the process's own."""
        if self._world.size == 1:
            return signal
        if done < self._next:
            return 0
        heard, interval = self._world.largest(signal, -self._interval)  # the smallest interval
        self._next = done - interval
        now = time.monotonic()  # the device has done its steps by now
        if self._last is not None:
            each = (now - self._since) / (done - self._last)
            self._interval = max(1, int(self._seconds / max(each, 1e-6)))
        self._since, self._last = now, done
        return heard


def join(device: torch.device) -> World:
    """The world that torchrun's environment describes, and this process's device in it; alone without torchrun.

    Processes talk by NCCL on CUDA and by gloo on the CPU. A process group that is there is used.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_initialized():
        return World(device, dist.get_rank(), dist.get_world_size())
    if size == 1:
        return World(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(device, dist.get_rank(), dist.get_world_size())


def gathered(state: Any) -> Any:
    """`state` with whole tensors in place of shards. All processes call this together."""
    if hasattr(state, "full_tensor"):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    return state


def scattered(state: Any, like: Tensor) -> Any:
    """`state` with tensors of the shape of the sharded parameter `like` as shards like its own."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(state, dict):
        return {key: scattered(value, like) for key, value in state.items()}
    if isinstance(state, Tensor) and isinstance(like, DTensor) and state.shape == like.shape:
        return distribute_tensor(state.to(like.device), like.device_mesh, like.placements)
    return state
