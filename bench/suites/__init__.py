"""The suites, one module each: adding a suite is adding a file.

A suite has `cases() -> Iterator[Case]` and a docstring that says what it measures.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Protocol, cast

from jepa_fast.bench.measure import Case
from jepa_fast.bench.measure.names import check_known


class Suite(Protocol):
    """A module of this folder."""

    __doc__: str

    def cases(self) -> Iterator[Case]: ...


def names() -> list[str]:
    """Every suite, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Suite:
    """The suite `name`. Raises ValueError that lists the suites for an unknown name, and names the nearest."""
    check_known("suite", [name], names())
    return cast(Suite, importlib.import_module(f"{__package__}.{name}"))
