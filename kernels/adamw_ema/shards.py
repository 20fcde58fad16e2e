"""DTensor parameters (FSDP2), which are stepped shard by shard."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor; its module is imported by whoever makes one, and slow to import for nothing."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Any:
    """This process's part of a DTensor; anything else as it is."""
    return getattr(tensor, "_local_tensor", tensor)


def placement(tensor: Any) -> str:
    """Where the parts of a tensor are."""
    return f"{tensor.placements} on {tensor.device_mesh}" if is_sharded(tensor) else "whole"


def norm_reduction(parameters: Sequence[Any]) -> Callable[[Tensor], None] | None:
    """What adds the squares of all shards, None where every process has all of the parameters.

    Raises ValueError for parameters that are not all sharded alike.
    """
    sharded: set[tuple[Any, tuple[int, ...]]] = set()
    for i, parameter in enumerate(parameters):
        if not is_sharded(parameter):
            sharded.add((None, ()))
            continue
        if any(place.is_partial() for place in parameter.placements):
            raise ValueError(f"params[{i}]: expected shards or replicas, got {parameter.placements}")
        dimensions = tuple(d for d, place in enumerate(parameter.placements) if place.is_shard())
        sharded.add((parameter.device_mesh, dimensions) if dimensions else (None, ()))
    if len(sharded) > 1:
        raise ValueError(
            "max_norm: expected parameters that are all sharded over the same processes, got a mixture"
        )
    mesh, dimensions = sharded.pop() if sharded else (None, ())
    if mesh is None:
        return None

    def reduce(square_sum: Tensor) -> None:
        for dimension in dimensions:
            torch.distributed.all_reduce(square_sum, group=mesh.get_group(dimension))

    return reduce
