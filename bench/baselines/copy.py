"""The memory's own speed, which an op that is bound by it can be held against."""

from collections.abc import Callable

import torch


def copy_of_as_many_bytes(moved: int, device: torch.device) -> Callable[[], object]:
    """A contiguous copy that reads and writes `moved` bytes in all, half of them each."""
    source = torch.ones(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
