"""`jepa-fast bench`: every op against its published baseline, as far as this machine can tell."""

import datetime as dt
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jepa_fast.commands.errors import UsageError
from jepa_fast.commands.outputs import check_file, check_folder

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from jepa_fast.bench.measure import Case, Record, Row
    from jepa_fast.bench.measure.ceilings import Ceilings
    from jepa_fast.bench.measure.telemetry import Sampler

BUDGET_S = 4.0  # of one comparison; --quick takes a quarter
CEILINGS_S = 0.4  # of each of three measurements


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
    case: Annotated[str, tyro.conf.arg(metavar="PATTERN")] = "*"
    """Cases to run: a shell pattern of "op, shape, dtype"."""
    against: Annotated[
        str, tyro.conf.arg(metavar="PEER,...", help_behavior_hint="(default: those that each suite chose)")
    ] = ""
    """Peers to run, by name: eager,compile,sdpa,flex,flash-attn,xformers,... (bench/README.md has all).
    compile is offered by every case, and takes its compilation's time."""
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
    export: Literal["pytest-benchmark", "github-action-benchmark", "test-infra-v3"] | None = None
    """Write the run to --output in that form, too (`jepa-fast export` does so for a record)."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File for --export."""


def run(config: Bench) -> int:
    """0. Raises UsageError for bad input."""
    try:
        from jepa_fast.bench import suites
        from jepa_fast.bench.measure import Record, fingerprint, load_average, save_record
        from jepa_fast.bench.measure.ceilings import measure_ceilings
        from jepa_fast.bench.measure.machine import choose_device, is_busy
        from jepa_fast.bench.measure.names import check_known
        from jepa_fast.bench.measure.peers import GROUPS, NAMES, expanded, installed, missing
        from jepa_fast.bench.measure.telemetry import open_sampler
        from jepa_fast.bench.report.export import write_export
        from jepa_fast.bench.report.terminal import make_console, tables
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; `pip install 'jepa-fast[bench]'` brings it"
        ) from None
    check_known("suite", config.suites, suites.names())
    against = [name.strip() for name in config.against.split(",") if name.strip()]
    check_known("--against", against, {*NAMES, *GROUPS})
    if config.budget is not None and not config.budget > 0:
        raise UsageError(f"--budget: expected seconds above 0, got {config.budget:g}")
    if (config.export is None) != (config.output is None):
        raise UsageError("--export and --output: expected both or neither")
    device = choose_device(config.device)
    if config.save:
        check_folder("--results", config.results)
    if config.output is not None:
        check_file("--output", config.output)

    peers = expanded(against)
    left_out: list[str] = []
    chosen = []
    for name in config.suites or suites.names():
        try:
            cases = list(suites.load(name).cases())
        except ModuleNotFoundError as error:
            left_out.append(
                f"suite {name}: {error.name} is not installed; `pip install 'jepa-fast[bench]'` brings it"
            )
            continue
        chosen += [
            (name, case)
            for case in cases
            if (case.quick or not config.quick) and (device.type == "cuda" or not case.needs_cuda)
            if fnmatchcase(f"{case.op}, {case.shape}, {case.dtype}", config.case.replace("[", "[[]"))
        ]
    if not chosen and config.case != "*":
        raise UsageError(f"--case: expected a pattern of op, shape, dtype that a case has, got {config.case}")
    absent = [(name, case) for name, case in chosen if case.needs and not installed(case.needs)]
    chosen = [one for one in chosen if one not in absent]
    left_out += dict.fromkeys(
        f"suite {name}: {case.needs} is not installed; `pip install {case.needs}` adds it"
        for name, case in absent
    )
    budget = config.budget or (BUDGET_S / 4 if config.quick else BUDGET_S)
    console = make_console()
    machine, load = fingerprint(), load_average()
    if is_busy(load, machine):
        console.print(
            f"other programs keep this machine busy (load average {load:.1f} on {machine.cores} cores): times and "
            "ratios will be off",
            style="yellow",
            highlight=False,
        )
    sampler = open_sampler(device)
    if isinstance(sampler, str) and device.type == "cuda":
        left_out.append(sampler)
    if not installed("scipy"):
        left_out.append(
            "scipy is not installed: intervals are resampled without it; `pip install scipy` adds it"
        )
    ceilings = measure_ceilings(device, CEILINGS_S) if chosen else None
    if config.quick and ceilings is not None:
        slow = [(name, case) for name, case in chosen if case.by_products and ceilings.is_slow(case.dtype)]
        chosen = [one for one in chosen if one not in slow]
        left_out += dict.fromkeys(
            f"suite {name}, {case.dtype}: this machine multiplies it at less than half the rate of float32; "
            "without --quick it runs"
            for name, case in slow
        )
    record = Record(
        created=dt.datetime.now(dt.UTC),
        command=shlex.join(["jepa-fast", *sys.argv[1:]]),
        machine=machine,
        load_average=load,
        rows=[],
        ceilings=ceilings,
        complete=False,
    )
    save = partial(save_record, record, config.results) if config.save else lambda: None
    try:
        for rows in _run_cases(
            chosen,
            device,
            budget,
            console,
            peers,
            record.ceilings,
            None if isinstance(sampler, str) else sampler,
        ):
            record.rows += rows
            save()
        record.complete = True
    finally:  # also when it is interrupted: what was measured is shown and kept
        record.missing = left_out + missing(peers, {row.peer for row in record.rows}, device)
        for table in tables(record.rows, console.width):
            console.print(table)
        _print_notes(record, console, quick=config.quick, asked=against)
        path = save()
        if path is not None:
            what = "saved" if record.complete else "stopped; what was measured is saved"
            console.print(f"{what} to {path}", highlight=False, soft_wrap=True)
        if config.export is not None and config.output is not None:
            write_export(record, config.export, config.output)
            console.print(f"{config.export}: {config.output}", highlight=False, soft_wrap=True)
    return 0


def _run_cases(
    chosen: "list[tuple[str, Case]]",
    device: "torch.device",
    budget: float,
    console: "Console",
    against: Sequence[str],
    ceilings: "Ceilings | None",
    sampler: "Sampler | None",
) -> "Iterator[list[Row]]":
    """The rows of each case as they come."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from jepa_fast.bench.measure import run_case

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for suite, case in chosen:
            progress.update(task, description=f"{suite}: {case.shape} {case.dtype}")
            yield run_case(
                case,
                suite=suite,
                device=device,
                budget_s=budget,
                against=against,
                ceilings=ceilings,
                sampler=sampler,
            )
            progress.advance(task)


def _print_notes(record: "Record", console: "Console", *, quick: bool, asked: list[str]) -> None:
    """The machine's ceilings, and what could not run or was left out."""
    lines = []
    if record.ceilings is not None:
        products = ", ".join(
            f"{name} {1e3 * value:.3g}" for name, value in record.ceilings.matmul_tflops.items()
        )
        lines.append(
            f"this machine copies {record.ceilings.copy_gbs:.3g} GB/s and multiplies matrices at {products} GFLOP/s: "
            "the shares are of these"
        )
    if not asked:
        more = "" if quick else "; some suites have it already"
        lines.append(f"torch.compile of the published formulations: --against eager,compile{more}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in record.missing:
        console.print(f"not there: {line}", highlight=False, markup=False, soft_wrap=True, style="yellow")
