"""The work list of one step: which tensors, where they are, and how they are cut into chunks.

Parameters, moments, teacher and copies stay where they are from step to step, so they are checked and laid out
once. Gradients may be new tensors at every step: their addresses are a small table of their own.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from ..ema.plan import is_dense
from .check import check_gradients, check_tensors
from .tensors import Tensors

FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)
# A type in a table is 0 where there is no such tensor, else 1 + its place in FLOAT_TYPES; or BYTES: a pair that is
# not floating point, whose bytes are copied from parameter to teacher.
ABSENT, BYTES = 0, -1
# Columns of `Plan.tensors`: seven addresses (0 for none), three types, the group.
COLUMNS = 11
TEACHER_TYPE, COPY_TYPE, TEACHER_COPY_TYPE = 7, 8, 9

# Values per chunk, at most. The EMA alone was measured with the same (ema/plan.py).
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 13}
# On the CPU every thread gets this many chunks or more, of at least so many values, so that none waits long at the end.
_CHUNKS_PER_THREAD, _SMALLEST_CHUNK = 8, 1 << 13
_PLANS_KEPT = 16
_GRADIENTS_KEPT = 4

_shape, _dtype = attrgetter("shape"), attrgetter("dtype")


class Gradients(NamedTuple):
    """table: int64 [tensors, 2], address (0 for none) and type, on the tensors' device. types: those that occur.
    refusals: why the kernels cannot take them (then table is empty)."""

    table: Tensor
    types: frozenset[int]
    refusals: list[str]


class Plan:
    """chunks: int64 [rows, 3], tensor, first value, count (bytes where the teacher's type is BYTES).
    tensors: int64 [tensors, COLUMNS]. types: (teacher, copy, teacher copy) types that occur.
    refusals: why the kernels that read a plan cannot serve these tensors (then chunks is empty)."""

    def __init__(self, tensors: Tensors, device: torch.device) -> None:
        self.device = device
        self.refusals = _refusals(tensors, device)
        served = [] if self.refusals else range(len(tensors.parameters))
        rows = [_row(tensors, i) for i in served]
        self.tensors = _table(rows, COLUMNS).to(device)
        self.types = frozenset(row[TEACHER_TYPE : TEACHER_COPY_TYPE + 1] for row in rows)
        chunk = _chunk_size(tensors.parameters, device)
        self.chunks = _table([c for i in served for c in _chunks(tensors, i, chunk)], 3).to(device)
        self._gradients: OrderedDict[tuple[object, ...], Gradients] = OrderedDict()
        self._spare: tuple[Tensor, Tensor] | None = None
        self._captured: list[Tensor] = []

    def gradients(self, tensors: Tensors) -> Gradients:
        """The table of this step's gradients.

        Raises ValueError or TypeError for gradients that do not go with their parameters.
        """
        present = [gradient for gradient in tensors.gradients if gradient is not None]
        try:
            key = (
                *map(Tensor.data_ptr, present),
                *map(_dtype, present),
                *map(Tensor.stride, present),
                *[i for i, gradient in enumerate(tensors.gradients) if gradient is None],
            )
        except RuntimeError:
            check_gradients(tensors)  # says which one is sparse, and so without an address
            raise
        found = self._gradients.get(key)
        if found is None:
            check_gradients(tensors)
            found = self._gradients[key] = self._lay_out_gradients(tensors)
            if len(self._gradients) > _GRADIENTS_KEPT:
                self._gradients.popitem(last=False)
        if (
            self.device.type == "cuda"
            and self._spare is None
            and not torch.cuda.is_current_stream_capturing()
        ):
            empty = torch.empty(len(tensors.parameters), 2, dtype=torch.int64)
            self._spare = (empty.pin_memory(), empty.to(self.device))
        return found

    def _lay_out_gradients(self, tensors: Tensors) -> Gradients:
        refusals = self.refusals or _gradient_refusals(tensors)
        rows = [
            (0, ABSENT) if gradient is None else (gradient.data_ptr(), type_of(gradient))
            for gradient in (() if refusals else tensors.gradients)
        ]
        types = frozenset(row[1] for row in rows)
        table = _table(rows, 2)
        if self.device.type == "cuda" and rows:
            table = self._on_gpu(table)
        return Gradients(table, types, refusals)

    def _on_gpu(self, table: Tensor) -> Tensor:
        if not torch.cuda.is_current_stream_capturing():
            return table.pin_memory().to(self.device, non_blocking=True)
        # Gradients made inside the captured graph: its replays copy their addresses from memory that nobody
        # writes again. It was set aside before, as nothing may pin memory during a capture.
        if self._spare is None:
            raise RuntimeError("capture: expected a step outside the capture just before it, got none")
        (pinned, on_device), self._spare = self._spare, None
        pinned.copy_(table)
        self._captured.append(pinned)
        return on_device.copy_(pinned, non_blocking=True)


_plans: OrderedDict[tuple[object, ...], Plan] = OrderedDict()


def find(tensors: Tensors, device: torch.device) -> Plan:
    """The plan of these tensors, made and checked on first sight.

    Raises ValueError or TypeError as `adamw_ema_step_` documents.
    """
    present = [tensor for part in tensors[:7] for tensor in part if tensor is not None]
    key = (
        device,
        *tensors.groups,
        *[tensor is None for part in tensors[:7] for tensor in part],
        *map(Tensor.data_ptr, present),
        *map(_shape, present),
        *map(_dtype, present),
        *map(Tensor.stride, present),
    )
    plan = _plans.get(key)
    if plan is None:
        check_tensors(tensors)
        plan = _plans[key] = Plan(tensors, device)
        if len(_plans) > _PLANS_KEPT:
            _plans.popitem(last=False)
    return plan


def type_of(tensor: Tensor | None) -> int:
    return ABSENT if tensor is None else 1 + FLOAT_TYPES.index(tensor.dtype)


def _table(rows: Sequence[Sequence[int]], columns: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), columns)


def _row(tensors: Tensors, i: int) -> tuple[int, ...]:
    parts = [part[i] for _, part in tensors.lasting()]
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in parts]
    floating = tensors.parameters[i].is_floating_point()
    types = [type_of(tensor) if floating else BYTES for tensor in parts[4:]]
    return *addresses, *types, tensors.groups[i]


def _chunks(tensors: Tensors, i: int, chunk: int) -> Iterator[tuple[int, int, int]]:
    parameter = tensors.parameters[i]
    count = parameter.numel() if parameter.is_floating_point() else parameter.nbytes
    for start in range(0, count, chunk):
        yield i, start, min(chunk, count - start)


def _chunk_size(parameters: Sequence[Tensor], device: torch.device) -> int:
    if device.type != "cpu":
        return CHUNK.get(device.type, 1)
    share = sum(map(Tensor.numel, parameters)) // (_CHUNKS_PER_THREAD * torch.get_num_threads())
    return min(CHUNK["cpu"], max(_SMALLEST_CHUNK, share // 64 * 64))


def _refusals(tensors: Tensors, device: torch.device) -> list[str]:
    if device.type not in CHUNK:
        return [f"no kernel runs on {device.type}"]
    refusals = []
    for i, parameter in enumerate(tensors.parameters):
        for name, part in tensors.lasting():
            tensor = part[i]
            if tensor is None or (not parameter.is_floating_point() and name in ("parameters", "teachers")):
                accepted: tuple[torch.dtype, ...] = ()
            else:
                accepted = (
                    FLOAT_TYPES if name in ("teachers", "copies", "teacher_copies") else FLOAT_TYPES[:1]
                )
            if accepted and tensor is not None and tensor.dtype not in accepted:
                names = ", ".join(str(dtype).removeprefix("torch.") for dtype in accepted)
                refusals.append(f"{name}[{i}] is {tensor.dtype}; kernels take {names}")
            if tensor is not None and name != "steps" and not _same_order(tensor, parameter):
                refusals.append(
                    f"{name}[{i}] does not fill memory without gaps in the order of parameters[{i}]"
                )
    return refusals


def _gradient_refusals(tensors: Tensors) -> list[str]:
    refusals = []
    for i, (parameter, gradient) in enumerate(zip(tensors.parameters, tensors.gradients, strict=True)):
        if gradient is not None:
            if gradient.dtype not in FLOAT_TYPES:
                refusals.append(
                    f"gradients[{i}] is {gradient.dtype}; kernels take float32, bfloat16, float16"
                )
            # The parameter is dense, or the plan would have refused; so equal strides are enough, and quick.
            if gradient.stride() != parameter.stride() and not _same_order(gradient, parameter):
                refusals.append(
                    f"gradients[{i}] does not fill memory without gaps in the order of parameters[{i}]"
                )
    return refusals


def _same_order(tensor: Tensor, other: Tensor) -> bool:
    """Whether both fill one run of memory in the same order of dimensions; those of size 1 have none."""
    long = [d for d, size in enumerate(other.shape) if size != 1]
    return is_dense(tensor) and [tensor.stride(d) for d in long] == [other.stride(d) for d in long]
