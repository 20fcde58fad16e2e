"""Collectives over the rows of a batch that is spread over processes, each with as many rows as it happens to have.

All of them are gathers, and what is summed is summed here in the order of the ranks: every process arrives at the
same bits, so all take the same branch wherever a value decides.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = Any  # torch.distributed.ProcessGroup, which a torch without distributed does not have


def size(group: Group | None) -> int:
    """Number of processes; 1 without a group.

    Raises TypeError for what is no process group, ValueError for a group that this process does not belong to.
    """
    if group is None:
        return 1
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        expected = "a torch.distributed.ProcessGroup such as dist.group.WORLD"
        raise TypeError(f"group: expected {expected}, got {type(group).__name__}")
    if dist.get_rank(group) < 0:
        raise ValueError("group: expected a group that this process belongs to, got one that it does not")
    return dist.get_world_size(group)


def rank(group: Group) -> int:
    """Which of its processes this one is."""
    return dist.get_rank(group)


def gather(tensor: Tensor, group: Group) -> Tensor:
    """[processes, *shape] of tensors that have one shape on every process."""
    tensor = tensor.contiguous()
    out = torch.empty((size(group), *tensor.shape), dtype=tensor.dtype, device=tensor.device)
    if tensor.numel():
        # Its name since torch 2.13, which warns of the one before.
        all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        # As bytes: not every backend knows every floating-point type.
        all_gather(out.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8), group=group)
    return out


def total(tensor: Tensor, group: Group) -> Tensor:
    """The sum over processes, bit-equal on all of them."""
    return gather(tensor, group).sum(dim=0)


def gather_rows(
    tensors: Sequence[Tensor], group: Group, counts: Sequence[int] | None = None
) -> tuple[tuple[Tensor, ...], slice]:
    """The rows of all processes in the order of ranks, for tensors of one shape [rows, D], and which are ours.

    One collective for all tensors. counts: rows of every process, if they are known; otherwise they are
    gathered first, and read by the host.
    """
    first = tensors[0]
    if counts is None:
        counts = gather(torch.tensor([first.shape[0]], device=first.device), group).flatten().tolist()
    longest = max(counts)
    packed = first.new_zeros((len(tensors), longest, first.shape[1]))
    for i, tensor in enumerate(tensors):
        packed[i, : first.shape[0]] = tensor.detach()
    everyone = gather(packed, group)  # [processes, tensors, longest, D]
    joined = tuple(
        torch.cat([everyone[i_rank, i, :count] for i_rank, count in enumerate(counts)])
        for i in range(len(tensors))
    )
    start = sum(counts[: rank(group)])
    return joined, slice(start, start + first.shape[0])


def check_rows(rows: int) -> None:
    """Raises ValueError for fewer than two rows over all processes, of which there is no variance."""
    if rows < 2:
        raise ValueError(f"group: expected at least two rows over all processes, got {rows}")
