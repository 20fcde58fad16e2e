"""`jepa-fast compare`: what became slower or faster between two records or two git revisions."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jepa_fast.commands.errors import UsageError
from jepa_fast.commands.outputs import check_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from jepa_fast.bench.measure.budgets import Budgets
    from jepa_fast.bench.measure.changes import Change
    from jepa_fast.bench.measure.records import Record

BUDGET_S = 4.0  # of one comparison of revisions


@dataclass(frozen=True)
class Compare:
    """Say what became slower or faster from OLD to NEW: two records, or two git revisions.

    Revisions are built each in a worktree of its own and run in two processes that take
    turns call by call; "." is the working tree. A slowdown is measured a second time, in
    new processes, before it counts. Records are compared row by row, relative to each
    row's baseline; there a slowdown counts only if --confirm, a second record of NEW,
    shows it, too.
    Exit code: 1 for a confirmed slowdown beyond the noise floor and its budget, 2 for
    bad usage, else 0.
    """

    old: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OLD")]
    """Record file or git revision to compare with."""
    new: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NEW")]
    """Record file or git revision that may have become slower."""
    suites: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="SUITE ...", help_behavior_hint="(default: all)")
    ] = ()
    """Suites to compare."""
    all_cases: bool = False
    """Of revisions: every case, not the quick ones alone."""
    budget: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = BUDGET_S
    """Of revisions: time for one comparison; measuring stops earlier once the answer is sure."""
    threads: int | None = None
    """Of revisions: CPU threads (default: PyTorch's). One thread waits for no other, which tells smaller
    changes on a machine that others use, too."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Of revisions: where to run; auto takes CUDA where it is there."""
    budgets: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """TOML file of how much slower each case may become (docs/ci.md shows one)."""
    fail_on: tuple[Literal["slower", "unconfirmed", "failed", "gone", "nothing"], ...] = ("slower",)
    """What exit code 1 stands for: a confirmed slowdown, also one that was measured once (of records any without
    --confirm), a case that cannot be timed, a case that NEW lacks, or nothing at all."""
    confirm: Annotated[Path | None, tyro.conf.arg(metavar="RECORD")] = None
    """Of records: a second record of NEW; without it every slowdown is unconfirmed."""
    different_machines: bool = False
    """Compare records of different machines; the result is marked."""
    markdown: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the result as Markdown, for a comment under a pull request."""


def run(config: Compare) -> int:
    """0, or 1 for what --fail-on names. Raises UsageError for bad input."""
    try:
        from jepa_fast.bench.measure.budgets import Budgets, load_budgets
        from jepa_fast.bench.report import changes as report
        from jepa_fast.bench.report.terminal import make_console
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; `pip install 'jepa-fast[bench]'` brings it"
        ) from None
    if not config.budget > 0:
        raise UsageError(f"--budget: expected seconds above 0, got {config.budget:g}")
    if config.threads is not None and config.threads < 1:
        raise UsageError(f"--threads: expected at least 1, got {config.threads}")
    if config.markdown is not None:
        check_file("--markdown", config.markdown)
    budgets = Budgets() if config.budgets is None else load_budgets(config.budgets)
    records = [_is_record(name) for name in (config.old, config.new)]
    if records[0] != records[1]:
        raise UsageError("OLD and NEW: expected two records or two git revisions, got one of each")
    console = make_console()
    remarks: list[str] = []
    found: list[Change] = []
    try:
        changes = (
            _of_records(config, budgets, remarks) if records[0] else _of_revisions(config, budgets, console)
        )
        found.extend(changes)
    finally:  # also when it is interrupted
        for remark in remarks:
            console.print(remark, style="bold yellow", highlight=False, soft_wrap=True)
        if found:
            console.print(report.table(found))
            for line in report.untimed(found):
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            console.print(report.summary(found), highlight=False)
    if config.markdown is not None:
        text = report.markdown(found, config.old, config.new, remarks, of_records=records[0])
        config.markdown.write_text(text, encoding="utf-8")
    if not any(change.ratio is not None for change in found):
        raise UsageError("OLD and NEW: expected a case that both have and that can be timed, got none")
    failures = [
        change for change in found if change.failure in config.fail_on and "nothing" not in config.fail_on
    ]
    for change in failures:
        told = f"{change.ratio:.2f} times the old time" if change.ratio is not None else change.note
        console.print(
            f"{change.failure}: {report.label(change)}: {told}",
            style="red",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if "unconfirmed" not in config.fail_on and any(change.failure == "unconfirmed" for change in found):
        console.print(
            "an unconfirmed slowdown was measured once and does not fail; --confirm RECORD gives a second measurement",
            highlight=False,
            soft_wrap=True,
        )
    return 1 if failures else 0


def _is_record(name: str) -> bool:
    return name.endswith(".json") or Path(name).is_file()


def _of_records(config: Compare, budgets: "Budgets", remarks: list[str]) -> "Iterator[Change]":
    from jepa_fast.bench.measure.changes import differing_fields, record_changes
    from jepa_fast.bench.measure.machine import is_busy
    from jepa_fast.bench.measure.records import load_record

    paths = [Path(config.old), Path(config.new), *([config.confirm] if config.confirm else [])]
    records: list[Record] = [load_record(path) for path in paths]
    if config.confirm and config.confirm.samefile(config.new):
        raise UsageError(f"--confirm: expected another record of NEW, got {config.confirm} again")
    for path, record in zip(paths[1:], records[1:], strict=True):
        differing = differing_fields(records[0].machine, record.machine)
        if differing:
            told = f"{paths[0]} and {path} are of different machines ({'; '.join(differing)})"
            if not config.different_machines:
                raise UsageError(f"{told}; --different-machines compares them all the same")
            remarks.append(told)
    busy = [
        f"{path} (load average {record.load_average:.1f} on {record.machine.cores} cores)"
        for path, record in zip(paths, records, strict=True)
        if is_busy(record.load_average, record.machine)
    ]
    if busy:
        told = "measured while other programs kept the machine busy, so slowdowns may be theirs"
        remarks.append(f"{', '.join(busy)}: {told}")
    if config.suites:
        from jepa_fast.bench.measure.names import check_known

        check_known("--suites", config.suites, {row.suite for record in records for row in record.rows})
        for record in records:
            record.rows = [row for row in record.rows if row.suite in config.suites]
    return record_changes(records[0], records[1], budgets, *records[2:])


def _of_revisions(config: Compare, budgets: "Budgets", console: "Console") -> "Iterator[Change]":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from jepa_fast.bench import suites
    from jepa_fast.bench.measure.changes import measure_changes
    from jepa_fast.bench.measure.machine import choose_device
    from jepa_fast.bench.measure.names import check_known
    from jepa_fast.bench.measure.sides import WorkerError, built

    for option, value in (("--confirm", config.confirm), ("--different-machines", config.different_machines)):
        if value:
            raise UsageError(f"{option}: expected with two records, got git revisions")
    check_known("--suites", config.suites, suites.names())
    device = choose_device(config.device).type
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with (
            Progress(*columns, console=console, transient=True) as progress,
            built((config.old, config.new), _announcer(progress)) as (old, new),
        ):
            task = progress.add_task("", total=None)

            def announce(case: str, total: int) -> None:
                done = -1 if case.startswith("once more") and progress.tasks[task].total != total else None
                progress.update(task, description=case, total=total, advance=1)
                if done is not None:
                    progress.reset(task, total=total, description=case)

            yield from measure_changes(
                replace(old, threads=config.threads),
                replace(new, threads=config.threads),
                suites=config.suites,
                quick=not config.all_cases,
                budget_s=config.budget,
                budgets=budgets,
                device=device,
                announce=announce,
            )
    except WorkerError as error:
        raise UsageError(str(error)) from None
    except RuntimeError as error:
        if "does not build" not in str(error):
            raise
        raise UsageError(str(error)) from None


def _announcer(progress: object) -> "Callable[[str], None]":
    def announce(line: str) -> None:
        progress.console.print(line, highlight=False, markup=False, soft_wrap=True)  # type: ignore[attr-defined]

    return announce
