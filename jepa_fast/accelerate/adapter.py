"""What knows one kind of module of one family of code bases."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)
ANY = object
Signatures = Sequence[Sequence[str]]


class Sample(NamedTuple):
    """Arguments of one call of a module, in float64 where they are floating-point."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})


class Adapter:
    """Matches modules by class name, attributes and signature, and holds the forward that takes their place.

    class_names: of the modules it is for. attributes: what such a module must have, and the types that are accepted.
    optional: submodules that may be there besides. signatures: names of the parameters of `forward`, without self.

    `forward(self, ...)` becomes a method of the module. Whatever a call brings that it does not serve (a mask, dropout
    in training, hooks on a submodule that it does not call) it hands to `original(self)`, so that no call is refused
    that was served before.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    title: ClassVar[str]
    class_names: ClassVar[Sequence[str]]
    attributes: ClassVar[dict[str, Any]] = {}
    optional: ClassVar[Sequence[str]] = ()
    signatures: ClassVar[Signatures] = ()
    corrected: ClassVar[bool | None] = None
    """True: only if corrections are asked for; False: only if not; None: either."""
    tolerance: ClassVar[float] = 1e-5
    """Of the comparison with the class: two orders of summation agree to 1e-12 in float64, rotary tables are kept in
    float32 (1e-7), and the nearest thing that is something else, the tanh form of GELU, differs by 1e-4."""
    forward: Callable[..., Any]

    def matches(self, cls: type) -> bool:
        return cls.__name__ in self.class_names

    def calls_as(self, cls: type[nn.Module]) -> bool:
        """Whether the class's forward takes what the adapter's takes."""
        return not self.signatures or parameters_of(cls.forward) in [
            tuple(names) for names in self.signatures
        ]

    def why_not(self, module: nn.Module) -> list[str]:
        """Reasons to leave the module alone; none if it may be replaced."""
        reasons = list(_attribute_reasons(module, self.attributes))
        if reasons:
            return reasons
        known = {*self.attributes, *self.optional}
        for name, child in module.named_children():
            if name not in known and not isinstance(child, nn.Identity):
                reasons.append(f"unexpected submodule {name} ({type(child).__name__})")
        for name, _ in module.named_parameters(recurse=False):
            if name not in known:
                reasons.append(f"unexpected parameter {name}")
        if not self.calls_as(type(module)):
            found = parameters_of(type(module).forward)
            reasons.append(f"expected forward({', '.join(self.signatures[0])}), got ({', '.join(found)})")
        return reasons or list(self.more_reasons(module))

    def more_reasons(self, module: nn.Module) -> list[str]:
        """Reasons beyond attributes, submodules and signature, of a module that has all of those."""
        return []

    def samples(self, module: nn.Module) -> list[Sample]:
        """Calls by which the forward is held against the module's own; none where there is nothing to compare."""
        return []

    def on_patch(self, module: nn.Module) -> None:
        """Changes to plain attributes, made before the class is swapped."""

    def on_restore(self, module: nn.Module) -> None:
        """Undo `on_patch`."""


def original(module: nn.Module) -> Callable[..., Any]:
    """The forward that the module's own class has, as an unbound function."""
    return type(module)._jepa_fast_original.forward  # type: ignore[attr-defined]


def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)[1:]


def _attribute_reasons(module: nn.Module, attributes: dict[str, Any]) -> list[str]:
    reasons = []
    for name, accepted in attributes.items():
        if not hasattr(module, name):
            reasons.append(f"expected attribute {name}")
        elif accepted is not ANY and not isinstance(value := getattr(module, name), accepted):
            types = accepted if isinstance(accepted, tuple) else (accepted,)
            names = " or ".join(getattr(t, "__name__", str(t)) for t in types)
            reasons.append(f"attribute {name}: expected {names}, got {type(value).__name__}")
    return reasons


def untouched(*modules: nn.Module) -> bool:
    """Whether calling the modules does no more than their class says: nobody has hooked into them."""
    for module in modules:
        fields = module.__dict__
        if any(fields.get(name) for name in HOOKS) or "forward" in fields:
            return False
    return True


def plain_linear(*modules: nn.Module) -> bool:
    """Whether the modules are linear layers whose weight may be read in their place."""
    return all(type(module) is nn.Linear for module in modules) and untouched(*modules)


def plain_norm(*modules: nn.Module) -> bool:
    """Whether the modules are LayerNorms over the last dimension, with weight and bias, to be read in their place."""
    return all(_is_norm(module) for module in modules) and untouched(*modules)


def _is_norm(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.LayerNorm)
        and len(module.normalized_shape) == 1
        and module.weight is not None
        and module.bias is not None
    )


def norm_reasons(module: nn.Module, *names: str) -> list[str]:
    return [
        f"attribute {name}: expected LayerNorm over one dimension with weight and bias"
        for name in names
        if not _is_norm(getattr(module, name))
    ]


def dropout_of(module: Any) -> float:
    """The probability of a dropout layer, 0 for what is none or off."""
    return float(getattr(module, "p", 0.0)) if getattr(module, "training", False) else 0.0


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Random arguments of a `Sample`."""
    return torch.randn(*shape, dtype=dtype)
