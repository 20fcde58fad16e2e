"""`optimize_` and `restore_`."""

from collections import Counter

from torch import nn

from . import probe
from .adapter import Adapter
from .config import FilterFn, OptimizeConfig
from .patching import adapter_of, restore, swap, unsharded
from .registry import ADAPTERS
from .report import Entry, Report

_DEFAULT = OptimizeConfig()


def optimize_(
    model: nn.Module, config: OptimizeConfig = _DEFAULT, filter_fn: FilterFn | None = None
) -> Report:
    """Make a model of another code base faster, in place: modules that are known compute by the ops of jepa_fast.

    model: any module, also a loss, and one that DDP, FSDP2 or torch.compile has wrapped.
    config: what may be replaced.
    filter_fn: (module, its name) -> whether it may be replaced; None is all.

    Returns a `Report`: for each module that an adapter is for, what replaced it, or why it was left alone.

    Parameters, buffers and state-dict keys stay as they are, and so do all results, within the rounding of the dtype;
    `verify` measures by how much. `restore_` undoes it. Doing it again changes nothing. The model can be copied,
    pickled (whoever reads it needs jepa_fast), wrapped and compiled afterwards.
    The module is matched by class name, attributes and signature, and the class is then held against its replacement
    on random weights in float64: what was renamed or rewritten upstream is left alone, with the reason.
    Calls that a replacement does not serve, such as dropout in training, run the module's own code.

    Raises TypeError for arguments of other types.
    """
    _check(model, config, filter_fn)
    if config.attention:
        from .transformers import register_if_imported

        register_if_imported()
    entries, others = [], Counter[str]()
    for name, module in list(model.named_modules()):
        kind = type(module).__name__
        current = adapter_of(module)
        candidates = [
            adapter
            for adapter in ADAPTERS
            if adapter.matches(unsharded(type(module))) and adapter.corrected in (None, config.corrected)
        ]
        if current is not None:
            entries.append(Entry(name, kind, current.title))
        elif candidates:
            entries.append(_optimize_one(name, module, candidates, config, filter_fn))
        elif not isinstance(module, nn.Identity) and next(module.children(), None) is None:
            others[kind] += 1
    return Report(tuple(entries), dict(others))


def restore_(model: nn.Module) -> Report:
    """Undo `optimize_`: every module computes by its own code again.

    Returns a `Report` of what was restored. Raises TypeError for what is no module.
    """
    _check(model, OptimizeConfig(), None)
    entries = []
    for name, module in list(model.named_modules()):
        adapter = adapter_of(module)
        if adapter is not None:
            restore(module)
            entries.append(Entry(name, type(module).__name__, None, (f"restored from {adapter.title}",)))
    return Report(tuple(entries))


def _optimize_one(
    name: str,
    module: nn.Module,
    candidates: list[Adapter],
    config: OptimizeConfig,
    filter_fn: FilterFn | None,
) -> Entry:
    """By the first adapter that fits. Otherwise the reasons are those of the one that came closest."""
    kind = type(module).__name__
    if filter_fn is not None and not filter_fn(module, name):
        return Entry(name, kind, None, ("filter_fn refused it",))
    refusals: list[tuple[tuple[int, int, int], list[str]]] = []
    for adapter in candidates:
        reasons = _why_not(adapter, module, config)
        if not reasons:
            swap(module, adapter)
            return Entry(name, kind, adapter.title)
        refusals.append((_distance(adapter, module, reasons), reasons))
    return Entry(name, kind, None, tuple(min(refusals)[1]))


def _distance(adapter: Adapter, module: nn.Module, reasons: list[str]) -> tuple[int, int, int]:
    """How far a module is from what an adapter expects: signature, missing attributes, those that are there."""
    missing = sum(reason.startswith("expected attribute") for reason in reasons)
    there = sum(hasattr(module, name) for name in adapter.attributes)
    return int(not adapter.calls_as(type(module))), missing, -there


def _why_not(adapter: Adapter, module: nn.Module, config: OptimizeConfig) -> list[str]:
    if not getattr(config, adapter.kind):
        return [f"OptimizeConfig.{adapter.kind} is off"]
    try:
        reasons = adapter.why_not(module)
    except Exception as error:  # a foreign class may raise whatever it likes when it is looked at
        return [f"could not be examined ({type(error).__name__}: {error})"]
    if reasons or not config.probe:
        return reasons
    return probe.why_not(adapter, module)


def _check(model: nn.Module, config: OptimizeConfig, filter_fn: FilterFn | None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(config, OptimizeConfig):
        raise TypeError(f"config: expected an OptimizeConfig, got {type(config).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(
            f"filter_fn: expected a function (module, name) -> bool, got {type(filter_fn).__name__}"
        )
