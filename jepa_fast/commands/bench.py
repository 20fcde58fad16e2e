"""`jepa-fast bench`: every op against its published baseline, as far as this machine can tell."""

import datetime as dt
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jepa_fast.commands.errors import UsageError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from jepa_fast.bench.measure import Case, Row

BUDGET_S = 4.0  # of one comparison; --quick takes a quarter
BUSY_SHARE = 0.5  # of the cores: from there on a parallel op waits for cores that others hold


@dataclass(frozen=True)
class Bench:
    """Time the ops and the training step against their published baselines.

    A case is timed only after its errors were held against a float64 oracle. A and B
    run interleaved; the verdict is faster, slower, same, or cannot tell.
    Ctrl-C shows and saves what was measured up to then.
    Exit code: 0, or 2 for bad usage; a slower result is no failure.
    """

    suites: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[SUITE ...]", help_behavior_hint="(default: all)"),
    ] = ()
    """Suites to run."""
    quick: bool = False
    """Fewer cases and a quarter of the time for each."""
    budget: Annotated[
        float | None,
        tyro.conf.arg(
            metavar="SECONDS", help_behavior_hint=f"(default: {BUDGET_S:g}, a quarter with --quick)"
        ),
    ] = None
    """Time for one comparison; a few calls of each side are made even when that takes longer."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes CUDA where it is there."""
    save: bool = False
    """Write a record of the run to --results."""
    results: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("bench/results")
    """Folder of the records."""


def run(config: Bench) -> int:
    """0. Raises UsageError for bad input."""
    try:
        from jepa_fast.bench import suites
        from jepa_fast.bench.measure import Record, fingerprint, load_average, save_record
        from jepa_fast.bench.report.terminal import make_console, tables
        from jepa_fast.training.setup import choose_device
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; `pip install 'jepa-fast[bench]'` brings it"
        ) from None
    known = suites.names()
    for name in config.suites:
        if name not in known:
            raise UsageError(f"suite: expected some of {', '.join(known)}, got {name}")
    if config.budget is not None and not config.budget > 0:
        raise UsageError(f"--budget: expected seconds above 0, got {config.budget:g}")
    device = choose_device(config.device)
    if config.save:
        _check_writable(config.results)

    chosen = [
        (name, case)
        for name in config.suites or known
        for case in suites.load(name).cases()
        if (case.quick or not config.quick) and (device.type == "cuda" or not case.needs_cuda)
    ]
    budget = config.budget or (BUDGET_S / 4 if config.quick else BUDGET_S)
    console = make_console()
    machine, load = fingerprint(), load_average()
    if load is not None and load > machine.cores * BUSY_SHARE:
        console.print(
            f"other programs keep this machine busy (load average {load:.1f} on {machine.cores} cores): times and "
            "ratios will be off",
            style="yellow",
            highlight=False,
        )
    record = Record(
        created=dt.datetime.now(dt.UTC),
        command=shlex.join(["jepa-fast", *sys.argv[1:]]),
        machine=machine,
        load_average=load,
        rows=[],
        complete=False,
    )
    save = partial(save_record, record, config.results) if config.save else lambda: None
    try:
        for rows in _run_cases(chosen, device, budget, console):
            record.rows += rows
            save()
        record.complete = True
    finally:  # also when it is interrupted: what was measured is shown and kept
        for table in tables(record.rows, console.width):
            console.print(table)
        path = save()
        if path is not None:
            what = "saved" if record.complete else "stopped; what was measured is saved"
            console.print(f"{what} to {path}", highlight=False, soft_wrap=True)
    return 0


def _run_cases(
    chosen: "list[tuple[str, Case]]", device: "torch.device", budget: float, console: "Console"
) -> "Iterator[list[Row]]":
    """The rows of each case as they come."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from jepa_fast.bench.measure import run_case

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for suite, case in chosen:
            progress.update(task, description=f"{suite}: {case.shape} {case.dtype}")
            yield run_case(case, suite=suite, device=device, budget_s=budget)
            progress.advance(task)


def _check_writable(folder: Path) -> None:
    """Before minutes of measuring rather than after them."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--results: {folder} cannot be written: {error.strerror}") from None
