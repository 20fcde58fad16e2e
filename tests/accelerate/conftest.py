import copy
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jepa_fast.accelerate.probe import tensors_in

# Modules of their own, so that their classes can be pickled.
for _name in ("standins", "standin_losses"):
    _spec = importlib.util.spec_from_file_location(
        f"accelerate_{_name}", Path(__file__).with_name(f"{_name}.py")
    )
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_spec.name])

Call = Callable[[nn.Module], Any]


def outcome(module: nn.Module, call: Call, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The first result of a call, and the gradients of a projection of it in all parameters."""
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        out = tensors_in(call(module))[0]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((out * weight).sum(), parameters, allow_unused=True)
    zero = torch.zeros(())
    return [out.detach(), *(zero if g is None else g for g in gradients)]


def distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """Over all tensors together, so that gradients which are zero in exact arithmetic weigh nothing."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, exact, strict=True) if a.shape == b.shape]
    assert len(pairs) == len(exact)
    parts = [pairs[:1], pairs[1:]]
    worst = 0.0
    for part in parts:
        top = sum(((a - b).square().sum() for a, b in part), torch.zeros(())) ** 0.5
        bottom = sum((b.square().sum() for _, b in part), torch.zeros(())) ** 0.5
        if part:
            worst = max(worst, float(top / bottom))
    return worst


@pytest.fixture
def within_budget() -> Callable[..., None]:
    """Patched against unpatched, forward and gradients: at most twice the error of the published code against its own
    float64, and a few units in the last place."""

    def check(theirs: nn.Module, ours: nn.Module, call: Call, dtype: torch.dtype | None = None) -> None:
        exact_model = copy.deepcopy(theirs).double()
        with _Default(torch.float64):
            exact = outcome(exact_model, call)
        eager = outcome(theirs, call, dtype)
        found = outcome(ours, call, dtype)
        ulp = torch.finfo(dtype or torch.float32).eps
        assert distance(found, exact) <= 2 * distance(eager, exact) + 4 * ulp

    return check


class _Default:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: Any) -> None:
        torch.set_default_dtype(torch.float32)
