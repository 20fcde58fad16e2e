"""Proof, before a class is replaced, that the replacement computes what the class computes.

Structure can deceive: a class may have every expected attribute and a `forward` that does something else with them. So
a copy of the module, with random weights, runs small random inputs in float64 both ways.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import HOOKS, Adapter, Sample
from .patching import patched_class, unsharded

_SEED = 20250811

_proven: dict[Any, str | None] = {}


def why_not(adapter: Adapter, module: nn.Module) -> list[str]:
    """Empty if the adapter's forward gave what the module's own gave, or where it has nothing to compare."""
    key = (adapter.name, type(module), _signature(module))
    if key not in _proven:
        _proven[key] = _compare(adapter, module)
    reason = _proven[key]
    return [] if reason is None else [reason]


def _signature(module: nn.Module) -> tuple[Any, ...]:
    """What a module's computation depends on, apart from the values of its tensors."""
    plain = tuple(
        (name, value)
        for name, value in sorted(module.__dict__.items())
        if isinstance(value, (bool, int, float, str, type(None), torch.dtype)) and name != "training"
    )
    shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
    children = tuple(
        (name, type(child), child.extra_repr()) for name, child in module.named_modules() if name
    )
    config = getattr(module, "config", None)
    return plain, shapes, children, getattr(config, "_attn_implementation", None)


def _compare(adapter: Adapter, module: nn.Module) -> str | None:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), torch.no_grad(), torch.autocast("cpu", enabled=False):
        torch.manual_seed(_SEED)
        try:
            theirs = random_copy(module)
            samples = adapter.samples(theirs)
        except Exception as error:  # whatever a foreign class does when it is copied
            return f"could not be copied for a comparison ({_in_one_line(error)})"
        for sample in samples:
            ours, theirs_again = exact_copy(theirs), exact_copy(theirs)  # some count their calls
            try:
                expected = _run(theirs_again, sample)
            except Exception as error:
                return f"its own forward failed on a sample ({_in_one_line(error)})"
            adapter.on_patch(ours)
            ours.__class__ = patched_class(type(theirs), adapter)
            try:
                found = _run(ours, sample)
            except Exception as error:
                return f"the replacement failed on a sample ({_in_one_line(error)})"
            if _form(found) != _form(expected):
                return "its forward returns something else"
            worst = difference(tensors_in(found)[:1], tensors_in(expected)[:1])
            if not worst <= adapter.tolerance:
                return f"its forward computes something else (relative difference {worst:.1e} in float64)"
    return None


def _run(module: nn.Module, sample: Sample) -> Any:
    torch.manual_seed(_SEED)
    args, kwargs = copy.deepcopy(
        (sample.args, dict(sample.kwargs))
    )  # some code adds to its arguments in place
    return module.forward(*args, **kwargs)


def _form(value: Any) -> Any:
    """What a caller unpacks; only the first of several results is the same for certain, as attention weights are not
    returned by fused attention."""
    if isinstance(value, (tuple, list)):
        return type(value), len(value)
    return sorted(value) if isinstance(value, dict) else type(value)


def tensors_in(value: Any) -> list[Tensor]:
    """The floating-point tensors of nested tuples, lists, mappings and objects with `to_tuple`."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = [item for _, item in sorted(value.items())]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest distance of two lists of tensors, relative to the largest value; inf where they do not match."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf")
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if theirs.numel():
            scale = max(theirs.abs().max().item(), torch.finfo(torch.float64).tiny)
            distance = (ours.double() - theirs.double()).abs().max().item() / scale
            worst = distance if distance != distance else max(worst, distance)  # NaN stays
    return worst


def random_copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU, in float64 and for evaluation, without hooks, with random parameters: those of the module may
    be sharded, on no device, or zero, which would hide a difference."""
    return _copied(module, {}, lambda parameter: nn.Parameter(_drawn(parameter.shape))).eval()


def exact_copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU, in float64, without hooks and replacements, with the module's own values."""
    copied = _copied(
        module,
        {},
        lambda parameter: nn.Parameter(
            parameter.detach().double().cpu(), requires_grad=parameter.requires_grad
        ),
    )
    return copied.train(module.training)


def _drawn(shape: torch.Size) -> Tensor:
    if len(shape) < 2:
        return 1.0 + 0.2 * torch.randn(shape, dtype=torch.float64)
    return torch.randn(shape, dtype=torch.float64) / max(shape[1:].numel(), 1) ** 0.5


def _copied(module: nn.Module, seen: dict[int, nn.Module], make: Any) -> nn.Module:
    if id(module) in seen:
        return seen[id(module)]
    cls = unsharded(type(module))
    new = seen[id(module)] = cls.__new__(cls)
    memo: dict[int, Any] = {}
    for name, value in module.__dict__.items():
        if name in ("_parameters", "_buffers", "_modules"):
            continue
        if name in HOOKS or name.endswith("_hooks"):
            new.__dict__[name] = OrderedDict()
        elif isinstance(value, Tensor) and value.numel() > 1 << 20:
            new.__dict__[name] = value  # a large table, such as a dense mask, is only read
        else:
            try:
                new.__dict__[name] = copy.deepcopy(value, memo)
            except Exception:  # such as what FSDP keeps on a module; nothing that a forward computes with
                new.__dict__[name] = value
    new.__dict__["_parameters"] = {k: None if p is None else make(p) for k, p in module._parameters.items()}
    new.__dict__["_buffers"] = {k: None if b is None else _buffer(b) for k, b in module._buffers.items()}
    new.__dict__["_modules"] = {
        k: None if m is None else _copied(m, seen, make) for k, m in module._modules.items()
    }
    return new


def _buffer(buffer: Tensor) -> Tensor:
    value = buffer.detach().cpu().clone()
    return value.double() if value.is_floating_point() else value


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
