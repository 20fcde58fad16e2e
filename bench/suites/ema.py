"""The teacher update over an I-JEPA encoder's parameters, against the published loop, foreach lerp, and a plain copy of
as many bytes: the target there is 97 % of its speed on a GPU."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import jepa_fast
from jepa_fast import models
from jepa_fast.bench.baselines.copy import copy_of_as_many_bytes
from jepa_fast.bench.baselines.ema import ema_foreach_lerp_, ema_loop_
from jepa_fast.bench.measure import Case, ErrorCheck, Trial, check_error

MOMENTUM = 0.996  # at the start of I-JEPA's schedule

Tensors = list[Tensor]


def cases() -> Iterator[Case]:
    yield _case("ViT-B/16", "ijepa_vitb16", torch.float32, torch.float32)
    yield _case("ViT-B/16", "ijepa_vitb16", torch.float32, torch.bfloat16)
    yield _case("ViT-S/16", "ijepa_vits16", torch.float32, torch.float32, quick=False)
    yield _case("ViT-H/14", "ijepa_vith14", torch.float32, torch.float32, needs_cuda=True)
    yield _case("ViT-H/14", "ijepa_vith14", torch.float32, torch.bfloat16, needs_cuda=True)


def _case(
    label: str,
    model: str,
    teacher: torch.dtype,
    student: torch.dtype,
    *,
    quick: bool = True,
    needs_cuda: bool = False,
) -> Case:
    names = [str(dtype).removeprefix("torch.") for dtype in (teacher, student)]
    return Case(
        op="ema_update_",
        shape=f"{label} encoder",
        dtype=names[0] if teacher == student else " <- ".join(names),
        build=partial(_build, model, teacher, student),
        quick=quick,
        needs_cuda=needs_cuda,
    )


def _build(model: str, teacher: torch.dtype, student: torch.dtype, device: torch.device) -> Trial:
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in models.create(model).encoder.parameters()]
    targets, sources = weights(shapes, teacher, student, device)
    baselines: dict[str, Callable[[], object]] = {
        "I-JEPA loop": partial(ema_loop_, targets, sources, MOMENTUM)
    }
    if teacher == student:
        baselines["_foreach_lerp_"] = partial(ema_foreach_lerp_, targets, sources, MOMENTUM)
    moved = sum(2 * t.nbytes + s.nbytes for t, s in zip(targets, sources, strict=True))
    if device.type == "cuda":
        baselines["copy of as many bytes"] = copy_of_as_many_bytes(moved, device)
    return Trial(
        ours=partial(jepa_fast.ema_update_, targets, sources, MOMENTUM),
        check=partial(check, targets, sources),
        implementation=jepa_fast.explain("ema", targets, sources, MOMENTUM).chosen,
        baselines=baselines,
        bytes=moved,
        flops=3 * sum(target.numel() for target in targets),  # two products and a sum
    )


def weights(
    shapes: Iterable[Sequence[int]], teacher: torch.dtype, student: torch.dtype, device: torch.device
) -> tuple[Tensors, Tensors]:
    """A teacher's and a student's tensors, of the size of trained weights and near each other."""
    random = torch.Generator().manual_seed(0)
    targets = [torch.randn(shape, generator=random).mul_(0.02).to(device, teacher) for shape in shapes]
    return targets, [target.mul(1.01).to(student) for target in targets]


def check(targets: Tensors, sources: Tensors) -> ErrorCheck:
    """Our update and the published loop against the reference in float64, on copies."""

    def updated(update: Callable[[Tensors, Tensors, float], None]) -> Tensors:
        copies = [target.clone() for target in targets]
        update(copies, sources, MOMENTUM)
        return copies

    def oracle() -> Iterator[Tensor]:
        for target, source in zip(targets, sources, strict=True):
            exact = target.double()
            jepa_fast.ema_update_([exact], [source.double()], MOMENTUM, implementation="reference")
            yield exact

    return check_error(updated(jepa_fast.ema_update_), updated(ema_loop_), oracle())
