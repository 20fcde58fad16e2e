"""The tables of `jepa-fast codegen`."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from jepa_fast.kernels.runtime.codegen import THROUGHPUT, WIDE_BITS, CodegenRecord
from jepa_fast.kernels.runtime.configuration import KernelConfiguration

Configurations = Mapping[tuple[str, str], KernelConfiguration]  # by op and name
Label = tuple[str, str, int]  # op, name and architecture
_SHOWN_CHANGES = 60
_IDENTITY = ("op", "name", "arch", "key")


def overview(records: Iterable[CodegenRecord], configurations: Configurations) -> Table:
    """One row per kernel and architecture, with the worst figure of its forms."""
    forms = defaultdict(list)
    for record in records:
        configuration = configurations[record.op, record.name]
        forms[record.op, configuration.family, record.arch].append((record, configuration))
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.caption = "Worst of each kernel's forms; 128-bit accesses where due."
    table.add_column("kernel", no_wrap=True)
    for heading in (
        *("sm", "forms", "regis-\nters", "spills", "128-bit\nloads", "128-bit\nstores"),
        *("shared\nbytes", "occu-\npancy", "loop"),
    ):
        table.add_column(heading, justify="right")
    for (_, family, arch), members in forms.items():
        kernels = [record for record, _ in members]
        loads = [r.wide_loads for r, c in members if c.expected_load_bits >= WIDE_BITS]
        stores = [r.wide_stores for r, c in members if c.expected_store_bits >= WIDE_BITS]
        spills = max(max(r.local_loads + r.local_stores, r.stack_bytes) for r in kernels)
        table.add_row(
            family,
            str(arch),
            str(len(kernels)),
            str(max(r.registers for r in kernels)),
            str(spills) if spills else "none",
            str(min(loads, default="-")),
            str(min(stores, default="-")),
            str(max(r.shared_bytes for r in kernels)),
            f"{min(r.occupancy for r in kernels):.0%}",
            str(max(r.main_loop_instructions for r in kernels)),
        )
    return table


def roofline(records: Iterable[CodegenRecord]) -> Table:
    """One row per configuration and architecture whose rates are known."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.caption = (
        "Of a block, in one turn of its main loop; *: no loop, in its whole life.\n"
        "Clocks that an SM takes for it: memory/tensor cores/issue/special functions; see kernels/runtime/codegen."
    )
    table.add_column("kernel", no_wrap=True)
    for heading in (
        *("sm", "instruc-\ntions", "bytes\nloaded", "bytes\nstored", "tensor\nflop", "special", "clocks"),
        *("bound", "occu-\npancy"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        if record.arch not in THROUGHPUT:
            continue
        turn = record.turn
        table.add_row(
            f"{record.op}/{record.name}",
            str(record.arch),
            f"{turn.instructions}{'' if turn.loop else '*'}",
            str(turn.loaded_bytes),
            str(turn.stored_bytes),
            str(turn.tensor_operations),
            str(turn.special_functions),
            "/".join(map(str, turn.clocks.values())),
            turn.bound,
            f"{record.occupancy:.0%}",
        )
    return table


def changes(before: Mapping[Label, CodegenRecord], after: Mapping[Label, CodegenRecord]) -> tuple[Table, str]:
    """Every figure that changed, and a line that counts the records."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("kernel", no_wrap=True)
    for heading in ("sm", "figure", "before", "after"):
        table.add_column(heading, justify="right", no_wrap=True)
    changed = rows = 0
    for label in sorted(before.keys() & after.keys()):
        figures = differences(before[label], after[label])
        changed += bool(figures)
        rows += len(figures)
        for figure, old, new in figures[: max(0, _SHOWN_CHANGES - rows + len(figures))]:
            table.add_row(f"{label[0]}/{label[1]}", str(label[2]), figure, str(old), str(new))
    if rows > _SHOWN_CHANGES:
        table.caption = f"... and {rows - _SHOWN_CHANGES} more"
    new, gone = after.keys() - before.keys(), before.keys() - after.keys()
    same = len(after) - len(new) - changed
    return table, f"{changed} changed, {len(new)} new, {len(gone)} gone, {same} as before"


def differences(before: CodegenRecord, after: CodegenRecord) -> list[tuple[str, Any, Any]]:
    """The figures that differ, the roofline's by their own names."""
    old, new = _figures(before), _figures(after)
    return [(name.replace("_", " "), old[name], new[name]) for name in old if old[name] != new[name]]


def _figures(record: CodegenRecord) -> dict[str, Any]:
    figures = {name: value for name, value in asdict(record).items() if name not in (*_IDENTITY, "turn")}
    figures |= {f"turn: {name}": value for name, value in asdict(record.turn).items()}
    return {name: _brief(value) for name, value in figures.items()}


def _brief(value: Any) -> Any:
    if isinstance(value, dict):
        return " ".join(f"{key}:{count}" for key, count in value.items()) or "none"
    return value
