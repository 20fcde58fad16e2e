"""The optimizer step with the teacher update in it, over an I-JEPA encoder's parameters, against PyTorch's two."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from jepa_fast import AdamWEMA, models
from jepa_fast.bench.baselines.adamw_ema import and_copies, default_and_loop, fused_and_foreach
from jepa_fast.bench.measure import Case, ErrorCheck, Trial, check_error

LR, WEIGHT_DECAY, MOMENTUM = 1e-4, 0.04, 0.996  # of the order of I-JEPA's
CHECKED_STEPS = 2

Tensors = list[Tensor]
Step = Callable[[], object]


def cases() -> Iterator[Case]:
    for copies in (None, torch.bfloat16):
        yield _case("ViT-B/16", "ijepa_vitb16", copies)
        yield _case("ViT-S/16", "ijepa_vits16", copies, quick=False)
        yield _case("ViT-H/14", "ijepa_vith14", copies, quick=False, needs_cuda=True)


def _case(
    label: str, model: str, copies: torch.dtype | None, *, quick: bool = True, needs_cuda: bool = False
) -> Case:
    return Case(
        op="AdamWEMA",
        shape=f"{label} encoder" + (", copies of both" if copies else ""),
        dtype="float32" + (f" + {str(copies).removeprefix('torch.')}" if copies else ""),
        build=partial(_build, model, copies),
        quick=quick,
        needs_cuda=needs_cuda,
    )


def _build(model: str, copies: torch.dtype | None, device: torch.device) -> Trial:
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in models.create(model).encoder.parameters()]
    gradients = [gradient.to(device) for gradient in _draw(shapes, 0.01, seed=1)]
    parameters, teacher = _networks(shapes, gradients, device)
    ours = AdamWEMA(
        parameters, lr=LR, weight_decay=WEIGHT_DECAY, teacher=teacher, momentum=MOMENTUM, copies=copies
    )
    # Every side has parameters and moments of its own, as in training; the gradients are shared, as they are only read.
    baselines: dict[str, Step] = {}
    makers = {"fused AdamW + foreach": fused_and_foreach, "AdamW + I-JEPA loop": default_and_loop}
    if copies is not None:
        makers.pop("AdamW + I-JEPA loop")
    for name, make in makers.items():
        theirs, follower = _networks(shapes, gradients, device)
        step = make(theirs, follower, LR, WEIGHT_DECAY, MOMENTUM)
        if copies is None:
            baselines[name] = step
        else:
            written = [[torch.empty_like(t, dtype=copies) for t in part] for part in (theirs, follower)]
            baselines[f"{name} + casts"] = and_copies(step, theirs, follower, *written)
    return Trial(
        ours=ours.step,
        check=partial(_check, shapes[:12], copies, device),
        implementation=ours.explain().chosen,
        baselines=baselines,
        bytes=_bytes(parameters, copies),
    )


def _bytes(parameters: Sequence[Tensor], copies: torch.dtype | None) -> int:
    """Parameter, two moments and teacher read and written, the gradient read, and a copy of both networks written."""
    each = 9 * torch.float32.itemsize + (2 * copies.itemsize if copies else 0)
    return each * sum(parameter.numel() for parameter in parameters)


def _draw(shapes: Sequence[Sequence[int]], scale: float, seed: int) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(seed)
    for shape in shapes:
        yield torch.randn(shape, generator=random).mul_(scale)


def _networks(
    shapes: Sequence[Sequence[int]],
    gradients: Sequence[Tensor],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensors, Tensors]:
    """Parameters of the size of trained weights, with gradients, and a teacher that equals them."""
    parameters: Tensors = []
    for value, gradient in zip(_draw(shapes, 0.02, seed=0), gradients, strict=True):
        parameters.append(torch.nn.Parameter(value.to(device, dtype)))
        parameters[-1].grad = gradient.to(dtype)
    return parameters, [parameter.detach().clone() for parameter in parameters]


def _check(shapes: Sequence[Sequence[int]], copies: torch.dtype | None, device: torch.device) -> ErrorCheck:
    """Our steps and the published ones against the reference in float64: parameters, teacher and copies."""
    gradients = [gradient.to(device) for gradient in _draw(shapes, 0.01, seed=1)]

    def stepped(
        dtype: torch.dtype, make: Callable[[Tensors, Tensors], tuple[Step, Callable[[], Tensors]]]
    ) -> Tensors:
        parameters, teacher = _networks(shapes, gradients, device, dtype)
        step, copied = make(parameters, teacher)
        for _ in range(CHECKED_STEPS):
            step()
        return [tensor.detach() for tensor in (*parameters, *teacher)] + copied()

    def with_ours(parameters: Tensors, teacher: Tensors) -> tuple[Step, Callable[[], Tensors]]:
        optimizer = AdamWEMA(
            parameters, lr=LR, weight_decay=WEIGHT_DECAY, teacher=teacher, momentum=MOMENTUM, copies=copies
        )
        return (
            optimizer.step,
            lambda: [optimizer.copy_of(t) for t in (*parameters, *teacher)] if copies else [],
        )

    def with_torch(parameters: Tensors, teacher: Tensors) -> tuple[Step, Callable[[], Tensors]]:
        step = default_and_loop(parameters, teacher, LR, WEIGHT_DECAY, MOMENTUM)
        return step, lambda: [t.detach().to(copies) for t in (*parameters, *teacher)] if copies else []

    def with_reference(parameters: Tensors, teacher: Tensors) -> tuple[Step, Callable[[], Tensors]]:
        optimizer = AdamWEMA(
            parameters,
            lr=LR,
            weight_decay=WEIGHT_DECAY,
            teacher=teacher,
            momentum=MOMENTUM,
            implementation="reference",
        )
        return optimizer.step, lambda: [t.detach() for t in (*parameters, *teacher)] if copies else []

    return check_error(
        stepped(torch.float32, with_ours),
        stepped(torch.float32, with_torch),
        stepped(torch.float64, with_reference),
    )
