"""A script's whole run with everything replaced that there is an adapter for.

A model is finished when it is called first: then its weights are loaded, and whatever wraps it does so. So the first
call of every outermost module optimises that module, before anything is computed; functions of libraries are replaced
at the same moment, and when an optimizer is made, by when a script has made its imports. Modules that were seen are not
looked at again, so that a step pays for one look into a set.
"""

import atexit
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from .config import OptimizeConfig
from .functions import patch_functions_, restore_functions_
from .optimize import optimize_
from .report import Entry, Report


class Session:
    """What one run has replaced."""

    def __init__(self, config: OptimizeConfig) -> None:
        self.config = config
        self.seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.entries: dict[tuple[str, str, str], Entry] = {}
        self.without_adapter: dict[str, int] = {}
        self.imported = 0
        self.busy = False

    def look_at(self, module: nn.Module) -> None:
        if self.busy or module in self.seen:  # optimize_ calls copies of modules
            return
        self.busy = True
        try:
            self.functions()
            self.seen.update(module.modules())
            self.add(optimize_(module, self.config))
        finally:
            self.busy = False

    def functions(self) -> None:
        """Only when something has been imported since."""
        if len(sys.modules) != self.imported:
            self.imported = len(sys.modules)
            self.add(patch_functions_())

    def add(self, report: Report) -> None:
        for entry in report.entries:
            self.entries[entry.name, entry.kind, entry.outcome] = entry
        for kind, count in report.without_adapter.items():
            self.without_adapter[kind] = self.without_adapter.get(kind, 0) + count

    def report(self) -> Report:
        return Report(tuple(self.entries.values()), dict(self.without_adapter))


_DEFAULT = OptimizeConfig()


@contextmanager
def running(config: OptimizeConfig = _DEFAULT) -> Iterator[Session]:
    """Replace while the context lasts; the report is printed to stderr at its end, or when the process exits."""
    session = Session(config)
    printed = False

    def show() -> None:
        nonlocal printed
        if not printed:
            printed = True
            print(session.report(), file=sys.stderr)

    def before_forward(module: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling():
            session.look_at(module)

    made = torch.optim.Optimizer.__init__

    def optimizer_made(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        session.functions()
        made(self, *args, **kwargs)

    handle = module_hooks.register_module_forward_pre_hook(before_forward)
    torch.optim.Optimizer.__init__ = optimizer_made  # type: ignore[method-assign]
    atexit.register(show)
    try:
        yield session
    finally:
        handle.remove()
        torch.optim.Optimizer.__init__ = made  # type: ignore[method-assign]
        restore_functions_()
        atexit.unregister(show)
        show()
