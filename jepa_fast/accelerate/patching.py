"""How a module is replaced: its class becomes a subclass of its class with another `forward`.

A subclass, and not a function stored on the instance, because
* parameters, buffers, submodules, hooks and attributes stay the very same objects, so state-dict keys do not change and
  optimizers, DDP and FSDP, which swaps classes itself, see what they saw;
* `isinstance` still holds, on which the code bases branch, and the name stays, by which FSDP policies choose;
* `torch.compile` guards on the class of a module: a model that was compiled before is compiled anew;
* `copy.deepcopy` and pickle take the class along: `__reduce_ex__` names the original class and the adapter, from which
  the subclass is made again on arrival;
* to restore is to put the class back.
"""

import threading
from typing import Any, cast

from torch import nn

from .adapter import Adapter

ORIGINAL = "_jepa_fast_original"
ADAPTER = "_jepa_fast_adapter"
Class = type[nn.Module]

_made: dict[tuple[Class, str], Class] = {}
_lock = threading.Lock()


def patched_class(original: Class, adapter: Adapter) -> Class:
    """The subclass of `original` with the adapter's forward; always the same one."""
    with _lock:
        made = _made.get((original, adapter.name))
        if made is None:
            body = {
                "forward": adapter.forward,
                "__reduce_ex__": _reduce,
                "__module__": original.__module__,
                "__qualname__": original.__qualname__,
                "__doc__": original.__doc__,
                ORIGINAL: original,
                ADAPTER: adapter,
            }
            made = _made[original, adapter.name] = cast("Class", type(original.__name__, (original,), body))
        return made


def is_made(cls: type) -> bool:
    """Whether `patched_class` made it."""
    return ORIGINAL in cls.__dict__


def adapter_of(module: nn.Module) -> Adapter | None:
    """What replaced the module's forward, or None."""
    return getattr(type(module), ADAPTER, None)


def swap(module: nn.Module, adapter: Adapter) -> None:
    made = patched_class(type(module), adapter)
    adapter.on_patch(module)
    module.__class__ = made


def restore(module: nn.Module) -> None:
    """Undo `swap`, also where something like FSDP has derived a class from ours since."""
    adapter = adapter_of(module)
    if adapter is None:
        return
    module.__class__ = without_patch(type(module))
    adapter.on_restore(module)


def without_patch(cls: Class) -> Class:
    """The class that `cls` would be, had nothing been replaced."""
    if is_made(cls):
        return getattr(cls, ORIGINAL)
    if not hasattr(cls, ORIGINAL):
        return cls
    bases = tuple(without_patch(base) if issubclass(base, nn.Module) else base for base in cls.__bases__)
    body = {name: value for name, value in cls.__dict__.items() if name not in ("__dict__", "__weakref__")}
    metaclass: Any = type(cls)
    return metaclass(cls.__name__, bases, body)


def unsharded(cls: Class) -> Class:
    """The class that FSDP, and before or after it `patched_class`, derived theirs from."""
    cls = without_patch(cls)
    while any(base.__name__ == "FSDPModule" for base in cls.__bases__):
        cls = without_patch(next(base for base in cls.__bases__ if base.__name__ != "FSDPModule"))
    return cls


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """For pickle and deepcopy: the original class and the adapter's name in the place of our class."""
    cls = type(self)
    reduced: Any = super(_defining(cls), self).__reduce_ex__(protocol)
    if not is_made(cls):
        return reduced
    original, adapter = getattr(cls, ORIGINAL), getattr(cls, ADAPTER)
    return (_rebuild, (original, adapter.name), *reduced[2:])


def _defining(cls: type) -> Any:
    return next(base for base in cls.__mro__ if is_made(base))


def _rebuild(original: Class, name: str) -> nn.Module:
    from .registry import adapter_by_name

    made = patched_class(original, adapter_by_name(name))
    return made.__new__(made)
