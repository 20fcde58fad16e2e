"""MLPs of all code bases: linear, exact GELU, linear."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jepa_fast.accelerate.adapter import Adapter, Sample, draw, dropout_of, original, untouched
from jepa_fast.accelerate.layers import mlp

_FIRST = ("fc1", "up_proj")
_SECOND = ("fc2", "down_proj")
_ACTIVATION = ("act", "activation", "activation_fn", "act_fn", "intermediate_act_fn")
_DROPOUT = ("drop", "drop1", "drop2", "dropout")


class GELUMLP(Adapter):
    """`fc1`, GELU, `fc2`, whatever the three are called, with dropout that is off."""

    name = "gelu_mlp"
    kind = "mlp"
    title = "gelu_mlp"
    class_names = (
        "VJEPA2MLP",
        "IJepaMLP",
        "ViTMLP",
        "Dinov2MLP",
        "Dinov2WithRegistersMLP",
        "DINOv3ViTMLP",
        "MLP",
        "Mlp",
    )

    def why_not(self, module: nn.Module) -> list[str]:
        reasons = [
            f"expected attribute {' or '.join(names)}"
            for names in (_FIRST, _SECOND, _ACTIVATION)
            if _name(module, names) is None
        ]
        if reasons:
            return reasons
        first, second, activation = (_part(module, names) for names in (_FIRST, _SECOND, _ACTIVATION))
        for names, layer in ((_FIRST, first), (_SECOND, second)):
            if type(layer) is not nn.Linear:
                reasons.append(
                    f"attribute {_name(module, names)}: expected Linear, got {type(layer).__name__}"
                )
            elif layer.bias is None:
                reasons.append(f"attribute {_name(module, names)}: expected a bias")
        if not reasons and not _is_exact_gelu(activation):
            reasons.append(f"activation: expected the exact GELU, got {activation}")
        known = {*_FIRST, *_SECOND, *_ACTIVATION, *_DROPOUT}
        for name, child in module.named_children():
            if name not in known and not isinstance(child, nn.Identity):
                reasons.append(f"unexpected submodule {name} ({type(child).__name__})")
        return reasons

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(2, 3, _part(module, _FIRST).in_features),))]

    @staticmethod
    def forward(self: Any, x: Tensor) -> Tensor:
        if all(dropout_of(getattr(self, name, None)) == 0.0 for name in _DROPOUT) and untouched(
            _part(self, _ACTIVATION)
        ):
            found = mlp(x, _part(self, _FIRST), _part(self, _SECOND))
            if found is not None:
                return found
        return original(self)(self, x)


def _name(module: nn.Module, names: Sequence[str]) -> str | None:
    return next((name for name in names if hasattr(module, name)), None)


def _part(module: nn.Module, names: Sequence[str]) -> Any:
    return getattr(module, _name(module, names) or names[0])


def _is_exact_gelu(activation: Any) -> bool:
    """By what it computes: every code base has a class of its own, and some a function."""
    points = torch.linspace(-4.0, 4.0, 33, dtype=torch.float64)
    try:
        found = activation(points)
    except Exception:  # not a function of a tensor, whatever it is
        return False
    return isinstance(found, Tensor) and torch.allclose(found, nn.functional.gelu(points), rtol=0, atol=1e-9)
