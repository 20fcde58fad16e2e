"""AdamW, then the moving average, in plain PyTorch: the oracle, and the fallback.

    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
    p <- (1 - lr wd) p - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)     (arXiv 1711.05101, algorithm 2)
    teacher <- momentum * teacher + (1 - momentum) * p                                (arXiv 2006.07733, section 3.1)

The first two lines are `torch.optim.adamw`'s own. Values are formed in float32 (float64 for float64 parameters) and
rounded once to the dtype of their tensor.
"""

import math

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from .work import BETA1, BETA2, EPS, LR, MOMENTUM, NORM_EPS, WEIGHT_DECAY, Work


def why_not(work: Work) -> list[str]:
    return []


@torch.no_grad()
def step_(work: Work) -> None:
    scale = 1.0
    if work.max_norm is not None and work.report is not None:
        norm = _norm(work)
        work.report.norm.fill_(norm)
        if work.skip and not math.isfinite(norm):
            work.report.skipped.add_(1)
            return
        scale = clip_scale(norm, work.max_norm)
    for i, (parameter, gradient) in enumerate(
        zip(work.tensors.parameters, work.tensors.gradients, strict=True)
    ):
        if gradient is not None:
            _adamw(work, i, parameter, gradient, scale)
        _follow(work, i, parameter)


def clip_scale(norm: float, max_norm: float) -> float:
    """The factor of torch.nn.utils.clip_grad_norm_: NaN if the norm is, 0 if it is infinite."""
    if max_norm == math.inf:
        return 1.0
    coefficient = max_norm / (norm + NORM_EPS)
    return 1.0 if coefficient > 1.0 else coefficient


def _norm(work: Work) -> float:
    square_sum = torch.zeros(1, dtype=torch.float64, device=work.plan.device)
    for gradient in work.tensors.gradients:
        if gradient is not None:
            square_sum += torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
    if work.reduce is not None:
        work.reduce(square_sum)
    return math.sqrt(square_sum.item())


def _adamw(work: Work, i: int, parameter: Tensor, gradient: Tensor, scale: float) -> None:
    group = work.hyperparameters[work.tensors.groups[i]].tolist()
    kept = [parameter, work.tensors.exp_avgs[i], work.tensors.exp_avg_sqs[i]]
    working = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    formed = [tensor.to(working) for tensor in kept if tensor is not None]
    gradient = gradient.to(working)
    adamw(
        [formed[0].detach()],
        [gradient if scale == 1.0 else gradient * scale],
        [formed[1]],
        [formed[2]],
        [],
        [step for step in (work.tensors.steps[i],) if step is not None],
        foreach=False,
        capturable=parameter.is_cuda,
        amsgrad=False,
        beta1=group[BETA1],
        beta2=group[BETA2],
        lr=group[LR],
        weight_decay=group[WEIGHT_DECAY],
        eps=group[EPS],
        maximize=False,
    )
    for tensor, value in zip(kept, formed, strict=True):
        if tensor is not None and tensor is not value:
            tensor.copy_(value)


def _follow(work: Work, i: int, parameter: Tensor) -> None:
    teacher, copy = work.tensors.teachers[i], work.tensors.copies[i]
    if copy is not None:
        copy.copy_(parameter)
    if teacher is None:
        return
    if not parameter.is_floating_point():
        teacher.copy_(parameter)
        return
    weight = 1.0 - work.hyperparameters[work.tensors.groups[i], MOMENTUM].item()
    working = torch.float64 if torch.float64 in (teacher.dtype, parameter.dtype) else torch.float32
    formed = torch.lerp(teacher.to(working), parameter.to(working), weight)
    teacher.copy_(formed)
    teacher_copy = work.tensors.teacher_copies[i]
    if teacher_copy is not None:
        teacher_copy.copy_(formed)
