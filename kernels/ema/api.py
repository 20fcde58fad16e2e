"""Exponential moving average of parameters, in place, over whole lists of tensors."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..runtime import library
from ..runtime.choice import Explanation, Operation
from . import plan as plans

__all__ = ["ema_update_"]

OPERATION = Operation("ema", __package__, triton="triton_ema", native="native")
# Dtype of the CPU tensor that carries a momentum given as a number through a compiled graph.
_BY_VALUE = torch.float64


def ema_update_(
    targets: Iterable[Tensor],
    sources: Iterable[Tensor],
    momentum: float | Tensor,
    *,
    implementation: str = "auto",
) -> None:
    """Move every target towards its source, in place:

        target <- momentum * target + (1 - momentum) * source          (BYOL, arXiv 2006.07733, section 3.1)

    the teacher update of I-JEPA and V-JEPA, for the whole list in one launch (GPU) or one parallel region (CPU).

    targets, sources: tensors of any shape, pairwise equal in shape, all on one device. Floating-point pairs may
        differ in dtype (float32, bfloat16 and float16 in the kernels; any in the reference) and are combined in
        float32, rounded once to the target's dtype: for float32 the result of `torch.lerp`, bit for bit where the
        CPU has fused multiply-add. Other dtypes must be equal and are copied.
    momentum: in [0, 1]: a float, or a one-element float32 tensor on the targets' device, which a captured CUDA
        graph reads anew at every replay (a float is frozen into the graph).
    implementation: "auto", "triton", "native" or "reference".

    Not differentiable; runs without recording gradients. Deterministic. Under CUDA-graph capture the same lists
    must have been updated once before (the table of addresses is made on first sight).

    Raises ValueError for lists that differ in length, shape or device, targets that share memory with any other
    tensor of the call, or a momentum outside [0, 1]; TypeError for dtypes that do not go together; RuntimeError
    if a requested implementation cannot serve.
    """
    targets, sources = list(targets), list(sources)
    if type(momentum) is not float and isinstance(momentum, Tensor):  # the first test saves the slow second
        _check_momentum_tensor(momentum, targets)
    elif not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
    if torch.compiler.is_compiling():
        if not isinstance(momentum, Tensor):
            # A number would be frozen into the graph, which a momentum schedule would then compile anew at every
            # step. The sum is the one form that Dynamo keeps open.
            momentum = torch.zeros((), dtype=_BY_VALUE, device="cpu") + momentum
        torch.ops.jepa_fast.ema_update_(targets, sources, momentum, implementation)
    else:
        _update_(targets, sources, momentum, implementation)


def _update_(
    targets: list[Tensor], sources: list[Tensor], momentum: float | Tensor, implementation: str
) -> None:
    device = targets[0].device if targets else torch.device("cpu")
    plan = plans.find(targets, sources, device)
    module = OPERATION.choose(implementation, device, plan)
    module.update_(plan, targets, sources, momentum)
    # Kernels write behind autograd's back; a graph that saved an old value must notice.
    torch.autograd.graph.increment_version(targets)


def _check_momentum_tensor(momentum: Tensor, targets: list[Tensor]) -> None:
    if momentum.numel() != 1 or momentum.dtype != torch.float32:
        raise ValueError(
            f"momentum: expected a float or one float32 element, got {momentum.dtype} {list(momentum.shape)}"
        )
    if targets and momentum.device != targets[0].device:
        raise ValueError(
            f"momentum: expected device {targets[0].device} of the targets, got {momentum.device}"
        )


def explain(
    targets: Iterable[Tensor], sources: Iterable[Tensor], momentum: float | Tensor = 0.996
) -> Explanation:
    """What `ema_update_` would choose for these arguments, and why the others are refused."""
    targets, sources = list(targets), list(sources)
    device = targets[0].device if targets else torch.device("cpu")
    return OPERATION.explain(device, plans.find(targets, sources, device))


def example_inputs(device: torch.device) -> tuple[Any, ...]:
    """Small arguments of `ema_update_`, for `jepa-fast doctor`."""
    return [torch.zeros(16, 16, device=device)], [torch.ones(16, 16, device=device)], 0.996


def _compiled(targets: list[Tensor], sources: list[Tensor], momentum: Tensor, implementation: str) -> None:
    _update_(targets, sources, float(momentum) if momentum.dtype == _BY_VALUE else momentum, implementation)


library.define(
    "ema_update_(Tensor(a!)[] targets, Tensor[] sources, Tensor momentum, str implementation) -> ()",
    _compiled,
    lambda targets, sources, momentum, implementation: None,
)
