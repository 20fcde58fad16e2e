"""Which implementation serves a call, and why the others do not.

An op has up to three implementations, each a module of its room: `triton` (GPU kernels), `native` (C++ on the
CPU) and `reference` (plain PyTorch). A module answers `why_not(*inputs) -> list[str]`: empty if it can serve.
Modules are imported on first need, so Triton is never loaded on a machine that cannot run it.
"""

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from . import native, triton_support

ENVIRONMENT_VARIABLE = "JEPA_FAST_IMPLEMENTATION"
IMPLEMENTATIONS = ("triton", "native", "reference")

# What "auto" tries, first to last. Triton's interpreter on the CPU is for tests and has to be asked for by name.
_AUTOMATIC: dict[str, tuple[str, ...]] = {"cpu": ("native", "reference"), "cuda": ("triton", "reference")}
_ELSEWHERE = ("reference",)

_PLATFORM_WHY_NOT: dict[str, Callable[[torch.device], list[str]]] = {
    "triton": triton_support.why_not,
    "native": native.why_not,
    "reference": lambda device: [],
}


@functools.cache
def _able(device: torch.device) -> tuple[str, ...]:
    """What "auto" tries on `device` and the platform can run; looked up once, as every call of an op comes by here."""
    return tuple(n for n in _AUTOMATIC.get(device.type, _ELSEWHERE) if not _PLATFORM_WHY_NOT[n](device))


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns.

    op: the op's name. chosen: the implementation that "auto" takes.
    refusals: for every implementation that was not chosen, its reasons.
    """

    op: str
    chosen: str
    refusals: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.chosen}"]
        lines += [f"  not {name}: {'; '.join(reasons)}" for name, reasons in self.refusals.items()]
        return "\n".join(lines)


class Operation:
    """The implementations of one op and the choice between them.

    name: the op, as in messages. package: the room (`__package__` of its api module).
    triton, native, reference: module names inside the room; None where the op has no such implementation.
    """

    def __init__(
        self,
        name: str,
        package: str,
        *,
        triton: str | None = None,
        native: str | None = None,
        reference: str = "reference",
    ) -> None:
        self.name = name
        self._package = package
        self._module_names = {"triton": triton, "native": native, "reference": reference}
        self._loaded: dict[str, ModuleType] = {}

    def module(self, implementation: str) -> ModuleType:
        """The module of `implementation`, imported on first use."""
        module = self._loaded.get(implementation)
        if module is None:
            name = f"{self._package}.{self._module_names[implementation]}"
            module = self._loaded[implementation] = importlib.import_module(name)
        return module

    def why_not(self, implementation: str, device: torch.device, *inputs: Any) -> list[str]:
        """Why `implementation` cannot serve `inputs` on `device`; empty if it can."""
        if self._module_names[implementation] is None:
            return [f"{self.name} has no {implementation} implementation"]
        # The platform is asked first: a module is imported only where it could run.
        return _PLATFORM_WHY_NOT[implementation](device) or self.module(implementation).why_not(*inputs)

    def choose(self, implementation: str, device: torch.device, *inputs: Any) -> ModuleType:
        """The module that serves `inputs` on `device`.

        implementation: "auto", or one of `IMPLEMENTATIONS`, which then serves or raises: it is never replaced by
        another one. `JEPA_FAST_IMPLEMENTATION` stands in for "auto".

        Raises ValueError for an unknown name, and RuntimeError with the reasons if what was asked for cannot serve.
        """
        source = "implementation"
        if implementation == "auto":
            override = os.environ.get(ENVIRONMENT_VARIABLE)
            if not override or override == "auto":
                return self._automatic(device, inputs)
            implementation, source = override, ENVIRONMENT_VARIABLE
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f"{source}: expected auto, {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
        reasons = self.why_not(implementation, device, *inputs)
        if reasons:
            raise RuntimeError(f"{source}: {implementation} cannot serve {self.name}: {'; '.join(reasons)}")
        return self.module(implementation)

    def _automatic(self, device: torch.device, inputs: tuple[Any, ...]) -> ModuleType:
        for name in _able(device):
            if self._module_names[name] is not None and not (module := self.module(name)).why_not(*inputs):
                return module
        raise AssertionError(f"the reference of {self.name} refuses nothing")

    def explain(self, device: torch.device, *inputs: Any) -> Explanation:
        """The choice for `inputs` on `device` under "auto", with every refusal."""
        order = _AUTOMATIC.get(device.type, _ELSEWHERE)
        override = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
        if override != "auto":
            self.choose("auto", device, *inputs)  # raises exactly as the op itself would
            order = (override,)
        reasons = {name: self.why_not(name, device, *inputs) for name in IMPLEMENTATIONS}
        chosen = next(name for name in order if not reasons[name])  # the reference refuses nothing
        refusals = {}
        for name in (*order, *(n for n in IMPLEMENTATIONS if n not in order)):
            if name == chosen:
                continue
            if override != "auto":
                otherwise = f"{ENVIRONMENT_VARIABLE}={override}"
            elif name in order:
                otherwise = f"{chosen} comes first on {device.type}"
            else:
                otherwise = f"never chosen automatically on {device.type}; ask for it by name"
            refusals[name] = reasons[name] or [otherwise]
        return Explanation(self.name, chosen, refusals)
