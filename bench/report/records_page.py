"""The report on all records: of every machine the newest figures, how they came about over time, and their commands."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jepa_fast.bench.measure import Record, Row
from jepa_fast.bench.measure.ceilings import Ceilings
from jepa_fast.bench.report.columns import COLD_COLUMNS, COLUMNS, HOST_COLUMNS, Column, reasons, stacked
from jepa_fast.bench.report.html import definitions, machine_facts, render
from jepa_fast.bench.report.readme import newest


@dataclass(frozen=True)
class Suite:
    """The newest rows of one suite on one machine. stale: the kernels have changed since. complete: whether the run was
    not stopped before its last case."""

    name: str
    record: str
    stale: bool
    complete: bool
    compared: list[Row]
    host: list[Row]
    cold: list[Row]
    reasons: list[str]
    speed_image: str
    memory_image: str


@dataclass(frozen=True)
class Place:
    """One machine."""

    title: str
    facts: list[tuple[str, str]]
    suites: list[Suite]
    roofline_image: str
    history_image: str
    missing: list[str]
    commands: list[tuple[str, str]]


def records_page(records: Mapping[Path, Record], *, with_stopped: bool = False) -> str:
    """The HTML text. Without matplotlib the figures are left out, which the page says.

    with_stopped: also runs that were stopped before their last case, which are marked. Those of a machine that has no
    others are shown anyway.
    Raises ValueError if there is no record with a measured row.
    """
    by_machine: dict[str, dict[Path, Record]] = {}
    for path, record in records.items():
        by_machine.setdefault(record.machine.short_name, {})[path] = record
    figures = _figures()
    places = [_place(own, figures is not None, with_stopped) for _, own in sorted(by_machine.items())]
    places = [place for place in places if place.suites]
    if not places:
        raise ValueError("records: expected at least one with a measured row, got none")
    return render(
        "records.html.j2",
        places=places,
        has_figures=figures is not None,
        stacks=_shown(COLUMNS, [row for place in places for suite in place.suites for row in suite.compared]),
        host_stacks=stacked(HOST_COLUMNS),
        cold_stacks=stacked(COLD_COLUMNS),
        definitions=definitions([*COLUMNS, *HOST_COLUMNS[4:], *COLD_COLUMNS[2:]]),
    )


def command_of(row: Row) -> str:
    """What measures exactly this row again."""
    words = ["jepa-fast", "bench", row.suite, "--case", f"{row.op}, {row.shape}, {row.dtype}"]
    if row.peer and row.peer not in ("raw-launch", "cold"):
        words += ["--against", row.peer]
    return shlex.join([*words, "--device", row.device.partition(":")[0]])


def _place(records: Mapping[Path, Record], with_figures: bool, with_stopped: bool) -> Place:
    complete = {path: record for path, record in records.items() if record.complete}
    taken = records if with_stopped or not complete else complete
    shown = newest(taken, with_all=True)
    latest = max(records.values(), key=lambda record: record.created)
    suites, commands, missing = [], [], []
    for path, record in shown.items():
        for name in dict.fromkeys(row.suite for row in record.rows):
            rows = [row for row in record.rows if row.suite == name]
            suites.append(_suite(name, path, record, rows, with_figures))
            commit = (record.machine.git_commit or "")[:12]
            for row in rows:
                checkout = f"git checkout {commit} && " if commit else ""
                commands.append(
                    (f"{row.op}, {row.shape}, {row.dtype}: {row.baseline}", checkout + command_of(row))
                )
        missing += [line for line in record.missing if line not in missing]
    suites.sort(key=lambda suite: suite.name)
    roofline = history = ""
    figures = _figures() if with_figures else None
    ceilings = next(
        (r.ceilings for r in sorted(shown.values(), key=lambda r: r.created, reverse=True) if r.ceilings),
        None,
    )
    if figures is not None:
        timed = [row for suite in suites for row in suite.compared]
        if ceilings is not None and any(row.flops and row.bytes for row in timed):
            roofline = figures.roofline(timed, ceilings)
        history = figures.history(list(taken.values())) or ""
    machine = latest.machine
    return Place(
        title=machine.gpu or f"{machine.cpu}, {machine.cores} cores",
        facts=[*machine_facts(machine), *_ceiling_facts(ceilings)],
        suites=suites,
        roofline_image=roofline,
        history_image=history,
        missing=missing,
        commands=commands,
    )


def _suite(name: str, path: Path, record: Record, rows: Sequence[Row], with_figures: bool) -> Suite:
    compared = [row for row in rows if row.host_overhead_us is None and row.timer != "process"]
    speed_image = memory_image = ""
    figures = _figures() if with_figures else None
    if figures is not None and any(row.ratio for row in compared):
        speed_image = figures.speed(compared)
        if any(row.baseline_peak_bytes for row in compared):
            memory_image = figures.memory(compared)
    return Suite(
        name=name,
        record=path.name,
        stale=record.stale,
        complete=record.complete,
        compared=compared,
        host=[row for row in rows if row.host_overhead_us is not None],
        cold=[row for row in rows if row.timer == "process"],
        reasons=reasons(rows),
        speed_image=speed_image,
        memory_image=memory_image,
    )


def _ceiling_facts(ceilings: Ceilings | None) -> list[tuple[str, str]]:
    if ceilings is None:
        return []
    products = ", ".join(
        f"{name} {1e3 * value:.4g} GFLOP/s" for name, value in ceilings.matmul_tflops.items()
    )
    return [("measured ceilings", f"copy {ceilings.copy_gbs:.3g} GB/s; matrix product {products}")]


def _shown(columns: Sequence[Column], rows: Sequence[Row]) -> list[list[Column]]:
    """Without stacks that are empty in every row."""
    return [stack for stack in stacked(columns) if any(column.cell(row) for column in stack for row in rows)]


def _figures():  # type: ignore[no-untyped-def]  # a module, or None
    try:
        from jepa_fast.bench.report import record_figures
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None
    return record_figures
