"""The rooms of `kernels/`, found by looking: a folder with an `api.py` is an op."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # finding the rooms must not cost an import of torch
    from .choice import Explanation

FOLDER = Path(__file__).resolve().parents[1]
PACKAGE = __name__.rsplit(".", 2)[0]


def names(folder: Path = FOLDER) -> list[str]:
    """Every op, by the name of its room."""
    return sorted(path.parent.name for path in folder.glob("*/api.py"))


def api(op: str) -> ModuleType:
    """The public module of a room.

    Raises ValueError if there is no such room.
    """
    if op not in names():
        raise ValueError(f"op: expected one of {', '.join(names())}, got {op!r}")
    return importlib.import_module(f"{PACKAGE}.{op}.api")


def explain(op: str | Callable[..., Any], *inputs: Any, **options: Any) -> "Explanation":
    """Which implementation `op` would choose for `inputs`, and why every other one is refused.

    op: a public function (`jepa_fast.ema_update_`), its name, or the name of its room ("ema").
    inputs, options: the arguments of the call in question; they are checked as the call checks them.

    Raises ValueError for an unknown op, and what the op raises for bad arguments.
    """
    name = op if isinstance(op, str) else op.__name__
    for room in names():
        module = api(room)
        if name == room or name in module.__all__:
            return module.explain(*inputs, **options)
    known = ", ".join(function for room in names() for function in api(room).__all__)
    raise ValueError(f"op: expected one of {known}, got {name!r}")
