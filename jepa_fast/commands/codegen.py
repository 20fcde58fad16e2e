"""`jepa-fast codegen`: the code-generation gate over every Triton kernel, on a machine without a GPU."""

import importlib.util
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jepa_fast.commands import codegen_records
from jepa_fast.commands.codegen_records import Records
from jepa_fast.commands.errors import UsageError
from jepa_fast.kernels.runtime import codegen, rooms
from jepa_fast.kernels.runtime.codegen import ARCHITECTURES, WIDE_BITS, CodegenRecord, Job
from jepa_fast.kernels.runtime.configuration import KernelConfiguration

Configurations = dict[tuple[str, str], KernelConfiguration]  # by op and name


@dataclass(frozen=True)
class Codegen:
    """Compile every Triton kernel, without a GPU, and gate its machine code.

    The gate fails on a spill, a lost 128-bit access, lost tensor cores or too much
    shared memory; with --check also on growth past the stored record.
    Exit code: 0 it passes, 1 it fails, 2 bad usage.
    """

    ops: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[OP ...]", help_behavior_hint="(default: all)"),
    ] = ()
    """Ops to compile."""
    arch: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SM [SM ...]")] = tuple(ARCHITECTURES)
    """Architectures, as compute capabilities without the point."""
    filter: Annotated[str, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(default: all)")] = ""
    """Take only configurations whose name contains TEXT."""
    every: bool = False
    """Take configurations too that differ from another by a size or a type alone."""
    check: bool = False
    """Compare with the stored record, bench/results/codegen.json."""
    save: bool = False
    """Renew the stored record if the gate passes."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the records to FILE, too."""

    def selects(self, op: str, name: str, arch: int) -> bool:
        """Whether the command line asks for this configuration and architecture."""
        return (not self.ops or op in self.ops) and arch in self.arch and self.filter in name


def run(config: Codegen) -> int:
    """0 if the gate passes, 1 if it fails. Raises UsageError for bad input."""
    if importlib.util.find_spec("triton") is None:
        raise UsageError(
            "the package triton is not installed; `pip install 'triton>=3.6'` brings the compiler"
        )
    import triton

    if config.check and config.save:
        raise UsageError("--check and --save exclude each other: compare first, then renew the record")
    if config.every and (config.check or config.save):
        raise UsageError("--every: the stored record has the sampled configurations alone")
    if config.json is not None and not config.json.absolute().parent.is_dir():
        raise UsageError(f"--json: {config.json.parent} is not a folder")
    path = codegen_records.stored_path() if config.check or config.save else None
    stored = codegen_records.read(path) if path and (config.check or path.exists()) else None
    jobs, configurations = _select(config)
    if config.save and stored and stored.triton != triton.__version__ and _unselected(config, stored):
        raise UsageError(
            f"--save: the stored record is from triton {stored.triton}, this is {triton.__version__}; "
            "save all ops and architectures at once"
        )

    console = Console()
    results = _compile(jobs, console)
    records = [result for result in results.values() if not isinstance(result, str)]
    failures = [f"{job.label}: {result}" for job, result in results.items() if isinstance(result, str)]
    baselines: dict[tuple[str, str, int], CodegenRecord] = {}
    if config.check and stored:
        if stored.triton == triton.__version__:
            baselines = {(r.op, r.name, r.arch): r for r in stored.records}
            failures += _out_of_date(config, stored, jobs)
        else:
            failures.append(f"the stored record is from triton {stored.triton}: renew it with --save")
    for record in records:
        baseline = baselines.get((record.op, record.name, record.arch))
        failures += codegen.check(record, configurations[record.op, record.name], baseline)

    console.print(_table(records, configurations))
    for failure in failures:
        console.print(failure, style="red", markup=False, highlight=False, soft_wrap=True)
    verdict = f"{len(failures)} failures" if failures else "passed"
    if config.json is not None:
        codegen_records.write(config.json, triton.__version__, records)
        verdict += f", records written to {config.json}"
    if config.save and path:
        if failures:
            verdict += ", stored record left as it was"
        else:
            kept = _unselected(config, stored) if stored else []
            codegen_records.write(path, triton.__version__, [*kept, *records])
            verdict += f", saved to {codegen_records.STORED}"
    summary = f"triton {triton.__version__}, {len(jobs)} compilations: {verdict}"
    console.print(summary, markup=False, highlight=False, soft_wrap=True)
    return 1 if failures else 0


def _select(config: Codegen) -> tuple[list[Job], Configurations]:
    """The jobs that the command line asks for, and their configurations."""
    known = rooms.names()
    for op in config.ops:
        if op not in known:
            raise UsageError(f"op: expected some of {', '.join(known)}, got {op}")
    for arch in config.arch:
        if arch not in ARCHITECTURES:
            raise UsageError(f"--arch: expected some of {', '.join(map(str, ARCHITECTURES))}, got {arch}")
    jobs: list[Job] = []
    configurations: Configurations = {}
    for op in known:
        for module in codegen.find_modules(op):
            for name, configuration in codegen.configurations(module).items():
                if not (configuration.sampled or config.every):
                    continue
                own = ARCHITECTURES if configuration.architectures is None else configuration.architectures
                selected = [arch for arch in own if config.selects(op, name, arch)]
                jobs += [Job(op, module, name, arch) for arch in selected]
                configurations[op, name] = configuration
    if not jobs:
        raise UsageError(f"--filter: no configuration's name contains {config.filter!r}")
    return jobs, configurations


def _unselected(config: Codegen, stored: Records) -> list[CodegenRecord]:
    """Stored records that a partial --save leaves alone."""
    return [r for r in stored.records if not config.selects(r.op, r.name, r.arch)]


def _out_of_date(config: Codegen, stored: Records, jobs: Iterable[Job]) -> list[str]:
    """Configurations that the stored record lacks, and those that it still has."""
    now = {job.label for job in jobs}
    before = {r.label for r in stored.records if config.selects(r.op, r.name, r.arch)}
    missing = [f"{label}: not in the stored record; add it with --save" for label in sorted(now - before)]
    stale = [
        f"{label}: in the stored record, but no configuration any more" for label in sorted(before - now)
    ]
    return missing + stale


def _compile(jobs: list[Job], console: Console) -> dict[Job, CodegenRecord | str]:
    """Each job's record, or why it does not compile, in the order of `jobs`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        finished = dict(progress.track(codegen.compile_jobs(jobs), total=len(jobs), description="compiling"))
    return {job: finished[job] for job in jobs}


def _table(records: Iterable[CodegenRecord], configurations: Configurations) -> Table:
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
