"""What was done to a model, module by module."""

from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Entry:
    """One module, or one function of a library.

    name: in the model; "" is the model itself. kind: its class. replacement: what serves in its place, None where it
    was left alone. reasons: why it was left alone.
    """

    name: str
    kind: str
    replacement: str | None = None
    reasons: tuple[str, ...] = ()

    @property
    def replaced(self) -> bool:
        return self.replacement is not None

    @property
    def outcome(self) -> str:
        return self.replacement or f"left alone: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class Report:
    """entries: the modules for whose class there is an adapter, in the order of the model, and what became of them.
    without_adapter: how many modules there are of every other class without submodules; they stay as they were.
    """

    entries: tuple[Entry, ...] = ()
    without_adapter: dict[str, int] = field(default_factory=dict)

    @property
    def replaced(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.replaced)

    @property
    def left_alone(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if not entry.replaced)

    def __add__(self, other: "Report") -> "Report":
        counts = Counter(self.without_adapter) + Counter(other.without_adapter)
        return Report((*self.entries, *other.entries), dict(counts))

    def table(self) -> Table:
        """Modules that met the same fate in one line."""
        title = f"jepa_fast: {len(self.replaced)} replaced, {len(self.left_alone)} left alone"
        table = Table("modules", "class", "outcome", title=title, title_justify="left")
        groups: dict[tuple[str, str], list[str]] = {}
        for entry in self.entries:
            groups.setdefault((entry.kind, entry.outcome), []).append(entry.name or "(the model)")
        for (kind, outcome), names in groups.items():
            shown = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)})"
            table.add_row(shown, kind, outcome)
        for kind, count in self.without_adapter.items():
            table.add_row(f"({count})", kind, "left alone: no adapter for this class")
        return table

    def __str__(self) -> str:
        console = Console(width=150, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()
