"""Patched against unpatched, module by module: errors and times."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from . import probe
from .patching import adapter_of, without_patch

_ROUNDS = 5
_SEED = 20250812


@dataclass(frozen=True)
class Row:
    """One module's call with the arguments that it had in the model, forward and gradients.

    error, eager_error: the largest distance of outputs and gradients from those of the published code in float64,
    relative to the largest value, for the replacement and for the published code in the dtype of the call. None where a
    module cannot be copied to float64; `difference` is then all there is. difference: of the two, relative.
    time_ratio: seconds of the published code / seconds of the replacement.
    reason: why there are no numbers.
    """

    name: str
    kind: str
    replacement: str
    error: float | None = None
    eager_error: float | None = None
    difference: float | None = None
    time_ratio: float | None = None
    reason: str | None = None

    @property
    def error_ratio(self) -> float | None:
        if self.error is None or self.eager_error is None:
            return None
        floor = torch.finfo(torch.float32).eps
        return self.error / max(self.eager_error, floor)


@dataclass(frozen=True)
class Verification:
    """rows: one for each replaced module, and one for the whole model, named ""."""

    rows: tuple[Row, ...]

    def table(self) -> Table:
        table = Table("module", "class", "replaced by", "error ratio", "difference", "times faster")
        for row in self.rows:
            cells = [row.name or "(the model)", row.kind, row.replacement]
            if row.reason is not None:
                table.add_row(*cells, row.reason, "", "")
                continue
            ratio = "n/a" if row.error_ratio is None else f"{row.error_ratio:.2f}"
            table.add_row(*cells, ratio, f"{row.difference:.1e}", f"{row.time_ratio:.2f}")
        return table

    def __str__(self) -> str:
        console = Console(width=140, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def verify(model: nn.Module, *sample: Any, **named: Any) -> Verification:
    """Run a model that `optimize_` has changed on a sample, and hold every replacement against what it replaced.

    sample, named: arguments of the model, as in training; call under `torch.autocast` for what happens there. Every
    replaced module is called with the arguments that it has in the model, both ways, forward and gradients, and timed
    both ways in turns, outside of the model's own time. Parameters, their `.grad`, buffers and random generators are
    left as they were.

    Returns a `Verification`; print it. Raises ValueError if nothing in the model has been replaced, TypeError for what
    is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    replaced = {name: module for name, module in model.named_modules() if adapter_of(module) is not None}
    if not replaced:
        raise ValueError("model: expected modules that optimize_ has replaced, got none")
    if not sample and not named:
        raise ValueError("sample: expected the arguments of a call of the model, got none")
    found: dict[str, Row] = {}
    handles = [
        module.register_forward_pre_hook(_examiner(name, found), with_kwargs=True, prepend=True)
        for name, module in replaced.items()
        if module is not model
    ]
    try:
        with _Preserved(model):
            model(*sample, **named)
    finally:
        for handle in handles:
            handle.remove()
    rows = [
        found.get(name) or _unreached(name, module)
        for name, module in replaced.items()
        if module is not model
    ]
    return Verification((*rows, _whole(model, sample, named)))


def _examiner(name: str, found: dict[str, Row]) -> Callable[..., None]:
    def examine(module: nn.Module, args: Any, kwargs: Any) -> None:
        if name in found or getattr(examine, "busy", False):
            return
        examine.busy = True  # type: ignore[attr-defined]
        try:
            found[name] = _row(name, module, args, kwargs, module)
        finally:
            examine.busy = False  # type: ignore[attr-defined]

    return examine


def _unreached(name: str, module: nn.Module) -> Row:
    return Row(name, type(module).__name__, _title(module), reason="not called with this sample")


def _whole(model: nn.Module, sample: Any, named: Any) -> Row:
    return _row("", model, sample, named, model)


def _title(module: nn.Module) -> str:
    adapter = adapter_of(module)
    return "its modules" if adapter is None else adapter.title


def _row(name: str, module: nn.Module, args: Any, kwargs: Any, root: nn.Module) -> Row:
    kind, title = type(module).__name__, _title(module)
    try:
        with _Preserved(root), torch.enable_grad():
            ours = _outcome(module, args, kwargs)
            with _Unpatched(root if name == "" else module, whole=name == ""):
                theirs = _outcome(module, args, kwargs)
            exact = _exact(module, args, kwargs)
            seconds: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(_ROUNDS):
                for patched in (True, False):
                    if patched:
                        seconds[patched].append(_timed(module, args, kwargs))
                    else:
                        with _Unpatched(root if name == "" else module, whole=name == ""):
                            seconds[patched].append(_timed(module, args, kwargs))
    except Exception as error:
        return Row(
            name, kind, title, reason=f"failed: {type(error).__name__}: {' '.join(str(error).split())}"[:160]
        )
    ratio = statistics.median(b / a for a, b in zip(seconds[True], seconds[False], strict=True))
    difference = _distance(ours, theirs)
    if exact is None:
        return Row(name, kind, title, difference=difference, time_ratio=ratio)
    return Row(name, kind, title, _distance(ours, exact), _distance(theirs, exact), difference, ratio)


class _Preserved:
    """Buffers and random generators as they were afterwards; `.grad` is never written, since gradients are returned."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.buffers = [
            (buffer, buffer.detach().clone()) for buffer in self.module.buffers() if not buffer.is_meta
        ]
        self.counters = [
            (part.__dict__, name, value)
            for part in self.module.modules()
            for name, value in part.__dict__.items()
            if type(value) is int
        ]
        self.random = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def __exit__(self, *_: Any) -> None:
        with torch.no_grad():
            for buffer, value in self.buffers:
                buffer.copy_(value)
        for place, name, count in self.counters:
            place[name] = count
        torch.set_rng_state(self.random)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


class _Unpatched:
    """The module, or with `whole` everything in it, by its own code."""

    def __init__(self, module: nn.Module, whole: bool) -> None:
        self.parts = [
            part for part in (module.modules() if whole else [module]) if adapter_of(part) is not None
        ]

    def __enter__(self) -> None:
        self.classes = [type(part) for part in self.parts]
        for part in self.parts:
            part.__class__ = without_patch(type(part))

    def __exit__(self, *_: Any) -> None:
        for part, cls in zip(self.parts, self.classes, strict=True):
            part.__class__ = cls


def _outcome(module: nn.Module, args: Any, kwargs: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Results, and gradients of a fixed random projection of them, in arguments and parameters."""
    with _Preserved(module):
        torch.manual_seed(_SEED)
        args, kwargs = _leaves((args, kwargs), dtype)
        out = [t for t in _tensors(module.forward(*args, **kwargs)) if t.requires_grad]
        leaves = [t for t in _tensors((args, kwargs)) if t.requires_grad]
        leaves += [p for p in module.parameters() if p.requires_grad]
        if not out:
            with torch.no_grad():
                return [t.detach() for t in _tensors(module.forward(*args, **kwargs))]
        random = torch.Generator().manual_seed(_SEED)
        weights = [torch.randn(t.shape, generator=random).to(t.device, t.dtype) for t in out]
        total = sum((t * w).sum() for t, w in zip(out, weights, strict=True))
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)  # type: ignore[arg-type]
    return [*(t.detach() for t in out), *(torch.zeros(()) if g is None else g for g in gradients)]


def _timed(module: nn.Module, args: Any, kwargs: Any) -> float:
    _synchronize()
    begin = time.perf_counter()
    _outcome(module, args, kwargs)
    _synchronize()
    return time.perf_counter() - begin


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _exact(module: nn.Module, args: Any, kwargs: Any) -> list[Tensor] | None:
    """By the published code in float64, on the CPU; None where the module cannot be taken there."""
    try:
        exact = probe.exact_copy(module)
        with torch.autocast("cpu", enabled=False):
            return _outcome(exact, args, kwargs, torch.float64)
    except Exception:  # a foreign class may not work in float64, and need not
        return None


def _leaves(value: Any, dtype: torch.dtype | None) -> Any:
    """The same arguments, with tensors of their own that gradients are taken of."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value if dtype is None else value.cpu()
        value = value.detach() if dtype is None else value.detach().to("cpu", dtype)
        return value.clone().requires_grad_()
    if isinstance(value, dict):
        return {key: _leaves(item, dtype) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_leaves(item, dtype) for item in value)
    return copy.copy(value)


def _tensors(value: Any) -> list[Tensor]:
    return probe.tensors_in(value)


def _distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest of the relative distances of pairs; what one side only has counts as zero there."""
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
        if ours.numel() and theirs.numel():
            scale = max(theirs.abs().max().item(), 1e-12)
            worst = max(worst, ((ours - theirs).abs().max() / scale).item())
    return worst
