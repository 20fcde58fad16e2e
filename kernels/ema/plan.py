"""The work list of one EMA update: every tensor pair cut into chunks, one table row each.

A training loop updates the same tensors every step, so the list is checked and laid out once and found again by
the tensors' addresses, shapes and dtypes. The native and the Triton kernel read the same table.
"""

from collections import OrderedDict
from collections.abc import Iterable
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

# Row of `Plan.chunks`: target address, source address, count, kind. Kind is 3 * target + source in this order,
# or COPY, whose count is in bytes.
FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)
COPY = len(FLOAT_TYPES) ** 2

# Values per chunk, at most. On the CPU a long run of addresses is what the memory system is fastest at: 2^18 float32
# pairs (2 MB) took 10 % less time than 2^15. On the GPU 2^13 values keep 132 multiprocessors busy from a ViT-tiny on
# and are 8 16-byte loads for each of 256 threads.
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 13}
# On the CPU every thread gets this many chunks or more, of at least so many values, so that none waits long at the end.
_CHUNKS_PER_THREAD, _SMALLEST_CHUNK = 8, 1 << 13
_PLANS_KEPT = 16


class Plan(NamedTuple):
    """chunks: int64 [rows, 4] on the tensors' device. kinds: the kinds that occur. refusals: why the kernels that
    read a plan cannot serve these tensors (then chunks is empty)."""

    chunks: Tensor
    kinds: frozenset[int]
    refusals: list[str]


_plans: OrderedDict[tuple[object, ...], Plan] = OrderedDict()
_shape, _dtype = attrgetter("shape"), attrgetter("dtype")


def find(targets: list[Tensor], sources: list[Tensor], device: torch.device) -> Plan:
    """The plan of these lists, made and checked on first sight.

    Raises ValueError or TypeError as `ema_update_` documents.
    """
    tensors = targets + sources
    key = (
        len(targets),
        device,
        *map(Tensor.data_ptr, tensors),
        *map(_shape, tensors),
        *map(_dtype, tensors),
        *map(Tensor.stride, tensors),
    )
    plan = _plans.get(key)
    if plan is None:
        _check(targets, sources)
        plan = _plans[key] = _lay_out(targets, sources, device)
        if len(_plans) > _PLANS_KEPT:
            _plans.popitem(last=False)
    return plan


def _lay_out(targets: list[Tensor], sources: list[Tensor], device: torch.device) -> Plan:
    refusals = _refusals(targets, sources, device)
    rows: list[tuple[int, int, int, int]] = []
    chunk = _chunk_size(targets, device)
    for target, source in zip(targets, sources, strict=True) if not refusals else ():
        if target.is_floating_point():
            kind = len(FLOAT_TYPES) * FLOAT_TYPES.index(target.dtype) + FLOAT_TYPES.index(source.dtype)
            count, target_size, source_size = target.numel(), target.element_size(), source.element_size()
        else:
            kind, count, target_size, source_size = COPY, target.nbytes, 1, 1
        for start in range(0, count, chunk):
            rows.append(
                (
                    target.data_ptr() + start * target_size,
                    source.data_ptr() + start * source_size,
                    min(chunk, count - start),
                    kind,
                )
            )
    chunks = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), 4).to(device)
    return Plan(chunks, frozenset(row[3] for row in rows), refusals)


def _chunk_size(targets: list[Tensor], device: torch.device) -> int:
    if device.type != "cpu":
        return CHUNK.get(device.type, 1)
    share = sum(map(Tensor.numel, targets)) // (_CHUNKS_PER_THREAD * torch.get_num_threads())
    return min(CHUNK["cpu"], max(_SMALLEST_CHUNK, share))


def _refusals(targets: list[Tensor], sources: list[Tensor], device: torch.device) -> list[str]:
    if device.type not in CHUNK:
        return [f"no kernel runs on {device.type}"]
    refusals = []
    for i, (target, source) in enumerate(zip(targets, sources, strict=True)):
        for name, tensor in (("targets", target), ("sources", source)):
            if tensor.is_floating_point() and tensor.dtype not in FLOAT_TYPES:
                refusals.append(f"{name}[{i}] is {tensor.dtype}; kernels take float32, bfloat16 and float16")
        if target.stride() != source.stride() or not is_dense(target):
            refusals.append(
                f"targets[{i}] and sources[{i}] do not fill memory in the same order without gaps"
            )
    return refusals


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one run of memory, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def _check(targets: list[Tensor], sources: list[Tensor]) -> None:
    if len(targets) != len(sources):
        raise ValueError(f"sources: expected {len(targets)} tensors, one per target, got {len(sources)}")
    for i, (target, source) in enumerate(zip(targets, sources, strict=True)):
        if target.shape != source.shape:
            raise ValueError(
                f"sources[{i}]: expected shape {list(target.shape)} of targets[{i}], got {list(source.shape)}"
            )
        for name, tensor in (("targets", target), ("sources", source)):
            if tensor.device != targets[0].device:
                raise ValueError(
                    f"{name}[{i}]: expected device {targets[0].device} of targets[0], got {tensor.device}"
                )
            if tensor.is_complex():
                raise TypeError(f"{name}[{i}]: expected a real dtype, got {tensor.dtype}")
        if target.is_floating_point() != source.is_floating_point() or (
            not target.is_floating_point() and target.dtype != source.dtype
        ):
            raise TypeError(
                f"sources[{i}]: expected "
                + ("a floating-point dtype" if target.is_floating_point() else str(target.dtype))
                + f" to go with targets[{i}] ({target.dtype}), got {source.dtype}"
            )
    if targets and targets[0].device.type != "meta":
        named = [(f"targets[{i}]", target, True) for i, target in enumerate(targets)]
        check_aliasing(named + [(f"sources[{i}]", source, False) for i, source in enumerate(sources)])


def check_aliasing(tensors: Iterable[tuple[str, Tensor, bool]]) -> None:
    """An update must not write memory that it also reads elsewhere, or writes twice.

    tensors: (name, tensor, whether it is written). Raises ValueError that names two which share an element.
    """
    extents = []  # (first byte, end, name, tensor, is_written)
    for name, tensor, is_written in tensors:
        if tensor.numel():
            span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            start = tensor.data_ptr()
            extents.append((start, start + span * tensor.element_size(), name, tensor, is_written))
            if is_written and not is_dense(tensor) and _addresses(tensor).unique().numel() < tensor.nbytes:
                raise ValueError(f"{name}: expected elements of their own, got a view that overlaps itself")
    extents.sort(key=lambda extent: extent[:2])
    reaching: list[tuple[int, int, str, Tensor, bool]] = []  # extents that may reach past the current start
    for extent in extents:
        reaching = [other for other in reaching if other[1] > extent[0]]
        for other in reaching:
            if (extent[4] or other[4]) and _overlap(extent[3], other[3]):
                target, partner = (extent[2], other[2]) if extent[4] else (other[2], extent[2])
                raise ValueError(f"{target}: expected memory of its own, but it is shared with {partner}")
        reaching.append(extent)


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors whose extents meet really share an element (interleaved views need not)."""
    if is_dense(a) and is_dense(b):
        return True
    return bool(torch.isin(_addresses(a), _addresses(b)).any())


def _addresses(tensor: Tensor) -> Tensor:
    """The byte addresses that a tensor occupies, int64."""
    offsets = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = offsets.unsqueeze(-1) + torch.arange(size) * stride
    elements = tensor.data_ptr() + offsets.flatten() * tensor.element_size()
    return (elements.unsqueeze(-1) + torch.arange(tensor.element_size())).flatten()
