"""`jepa-fast codegen`: the code-generation gate over every Triton kernel, on a machine without a GPU."""

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jepa_fast.commands import codegen_records, codegen_tables
from jepa_fast.commands.codegen_cache import Cache
from jepa_fast.commands.codegen_records import Records, UnreadableError
from jepa_fast.commands.errors import UsageError
from jepa_fast.commands.outputs import check_file
from jepa_fast.kernels.runtime import codegen, rooms
from jepa_fast.kernels.runtime.codegen import ARCHITECTURES, CodegenRecord, Failure, Job
from jepa_fast.kernels.runtime.configuration import KernelConfiguration

Configurations = dict[tuple[str, str], KernelConfiguration]  # by op and name
EXCERPTS = 12
"""Failures whose instructions are printed; each is one more compilation."""
WIDEST = 160
"""Columns that a table may take where the output has fewer."""


@dataclass(frozen=True)
class Codegen:
    """Compile every Triton kernel, without a GPU, and gate its machine code.

    The gate fails on a spill, a lost 128-bit access, lost tensor cores or too much
    shared memory; with --check also on growth past the stored record.

    What was compiled before is not compiled again: a plain run takes it from the
    user's cache, --check takes what has not changed since from the stored record,
    less a sample of every kernel that is compiled anew and must equal it.
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
    """Take configurations too that differ from another by a size or a type alone; they are not in the stored record."""
    check: bool = False
    """Compare with the stored record, bench/results/codegen.json."""
    update: bool = False
    """Rewrite the stored record and print what changed, if the gate passes without it."""
    fresh: bool = False
    """Compile everything, whatever the stored record and the cache have."""
    roofline: bool = False
    """Print a static roofline of each configuration: the main loop's work and what bounds it."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the records to FILE, too."""

    def selects(self, op: str, name: str, arch: int) -> bool:
        """Whether the command line asks for this configuration and architecture."""
        return (not self.ops or op in self.ops) and arch in self.arch and self.filter in name

    @property
    def is_whole(self) -> bool:
        return not self.ops and not self.filter and set(self.arch) >= set(ARCHITECTURES)


class Found(NamedTuple):
    """Each job's record, or why it does not compile, in the order of the jobs, and those that were compiled now."""

    results: dict[Job, CodegenRecord | str]
    compiled: set[Job]
    cached: int
    recorded: int


def run(config: Codegen) -> int:
    """0 if the gate passes, 1 if it fails. Raises UsageError for bad input."""
    if importlib.util.find_spec("triton") is None:
        raise UsageError(
            "the package triton is not installed; `pip install 'triton>=3.6'` brings the compiler"
        )
    import triton

    if config.check and config.update:
        raise UsageError("--check and --update exclude each other: compare first, then renew the record")
    if config.every and config.update:
        raise UsageError("--every: the stored record has the sampled configurations alone")
    if config.json is not None:
        check_file("--json", config.json)
    path = codegen_records.stored_path() if config.check or config.update else None
    stored = _stored(config, path) if path else None
    jobs, configurations = _select(config)
    if config.update and stored and stored.triton != triton.__version__ and not config.is_whole:
        raise UsageError(
            f"--update: the stored record is from triton {stored.triton}, this is {triton.__version__}; "
            "update all ops and architectures at once"
        )

    console = Console()
    baselines: dict[codegen_tables.Label, CodegenRecord] = {}
    if config.check and stored and stored.triton == triton.__version__:
        baselines = _by_label(stored.records)
    found = _find(config, jobs, configurations, baselines, console)
    records = [result for result in found.results.values() if not isinstance(result, str)]
    failures = [
        (job, Failure(f"{job.label}: {result}", ""))
        for job, result in found.results.items()
        if isinstance(result, str)
    ]
    for job, result in found.results.items():
        if not isinstance(result, str):
            baseline = baselines.get((job.op, job.name, job.arch))
            configuration = configurations[job.op, job.name]
            failures += [(job, failure) for failure in codegen.check(result, configuration, baseline)]
            failures += [(job, failure) for failure in _rotten(job, result, baseline, found)]
    general = _out_of_date(config, stored, jobs, configurations) if config.check and stored else []

    table = codegen_tables.roofline(records) if config.roofline else None
    _print_table(console, table or codegen_tables.overview(records, configurations))
    _print_failures(console, failures, general, configurations)
    count = len(failures) + len(general)
    verdict = f"{count} failures" if count else "passed"
    if config.json is not None:
        codegen_records.write(config.json, triton.__version__, records)
        verdict += f", records written to {config.json}"
    if config.update and path:
        verdict += (
            _update(config, path, stored, records, console) if not count else ", stored record left as it was"
        )
    made = f"{len(found.compiled)} now, {found.cached} from the cache, {found.recorded} as recorded"
    summary = f"triton {triton.__version__}, {len(jobs)} compilations ({made}): {verdict}"
    console.print(summary, markup=False, highlight=False, soft_wrap=True)
    return 1 if count else 0


def _stored(config: Codegen, path: Path) -> Records | None:
    """The stored record; None where --update may write one from nothing."""
    if config.update and not path.exists():
        return None
    try:
        return codegen_records.read(path)
    except UnreadableError:
        if config.update and config.is_whole:
            return None
        raise


def _select(config: Codegen) -> tuple[list[Job], Configurations]:
    """The jobs that the command line asks for, and their configurations."""
    known = rooms.names()
    if not set(config.ops) <= set(known):
        from jepa_fast.bench.measure.names import check_known  # takes a second

        check_known("op", config.ops, known)
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


def _by_label(records: Iterable[CodegenRecord]) -> dict[codegen_tables.Label, CodegenRecord]:
    return {(r.op, r.name, r.arch): r for r in records}


def _find(
    config: Codegen,
    jobs: list[Job],
    configurations: Configurations,
    recorded: Mapping[codegen_tables.Label, CodegenRecord],
    console: Console,
) -> Found:
    """Each job's record: of `recorded` if its key is unchanged, else from the cache, else compiled."""
    cache = Cache()
    found: dict[Job, CodegenRecord | str] = {}
    cached = 0
    if not config.fresh:
        keys = {job: codegen.compilation_key(configurations[job.op, job.name], job.arch) for job in jobs}
        labels = {job: (job.op, job.name, job.arch) for job in jobs}
        unchanged = [
            job for job in jobs if labels[job] in recorded and recorded[labels[job]].key == keys[job]
        ]
        anew = _sample(unchanged, keys, configurations)
        found.update({job: recorded[labels[job]] for job in unchanged if job not in anew})
        for job in jobs:
            if job not in found and job not in anew and (hit := cache.get(keys[job], job.op, job.name)):
                found[job] = hit
                cached += 1
    missing = [job for job in jobs if job not in found]
    reused = len(found) - cached
    for job, result in _compile(missing, console):
        found[job] = result
        if not isinstance(result, str):
            cache.put(result)
    if missing:
        cache.prune()
    return Found({job: found[job] for job in jobs}, set(missing), cached, reused)


def _sample(unchanged: list[Job], keys: Mapping[Job, str], configurations: Configurations) -> set[Job]:
    """One of each kernel and architecture, the one with the least key: at hand the same for the same tree, and another
    one as the kernel changes."""
    least: dict[tuple[str, str, int], Job] = {}
    for job in sorted(unchanged, key=keys.__getitem__):
        least.setdefault((job.op, configurations[job.op, job.name].family, job.arch), job)
    return set(least.values())


def _compile(jobs: list[Job], console: Console) -> Iterable[tuple[Job, CodegenRecord | str]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(codegen.compile_jobs(jobs), total=len(jobs), description="compiling")


def _rotten(job: Job, record: CodegenRecord, baseline: CodegenRecord | None, found: Found) -> list[Failure]:
    """What the stored record says of the same compilation, and is not so."""
    if baseline is None or job not in found.compiled or baseline.key != record.key:
        return []
    wrong = [
        f"{name} {old}, compiled {new}" for name, old, new in codegen_tables.differences(baseline, record)
    ]
    if not wrong:
        return []
    return [
        Failure(f"{job.label}: the stored record is not what this source compiles to: {'; '.join(wrong)}", "")
    ]


def _out_of_date(
    config: Codegen, stored: Records, jobs: Iterable[Job], configurations: Configurations
) -> list[str]:
    """A record of another compiler, configurations that the stored record lacks, and those that it still has."""
    import triton

    if stored.triton != triton.__version__:
        return [f"the stored record is from triton {stored.triton}: renew it with --update"]
    now = {job.label for job in jobs if configurations[job.op, job.name].sampled}
    before = {r.label for r in stored.records if config.selects(r.op, r.name, r.arch)}
    missing = [f"{label}: not in the stored record; add it with --update" for label in sorted(now - before)]
    stale = [
        f"{label}: in the stored record, but no configuration any more" for label in sorted(before - now)
    ]
    return missing + stale


def _print_failures(
    console: Console, failures: list[tuple[Job, Failure]], general: list[str], configurations: Configurations
) -> None:
    """The failures of each job, the line of its kernel, and the instructions that show them."""
    by_job: dict[Job, list[Failure]] = {}
    for job, failure in failures:
        by_job.setdefault(job, []).append(failure)
    wanted = {(job, kind): None for job, own in by_job.items() for kind in _shown(own)}
    evidence = codegen.find_evidence(list(wanted)[:EXCERPTS]) if wanted else {}
    for job, own in by_job.items():
        for failure in own:
            console.print(failure.message, style="red", markup=False, highlight=False, soft_wrap=True)
        lines = [f"  {_place(configurations[job.op, job.name])}"]
        for kind in _shown(own):
            lines += evidence.get((job, kind), [])
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    for message in general:
        console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)


def _shown(failures: list[Failure]) -> list[str]:
    """The kinds of instructions to print for one job; where something was lost, growth only follows from it."""
    kinds = list(dict.fromkeys(failure.kind for failure in failures if failure.kind))
    return [kind for kind in kinds if kind != "loop"] or kinds


def _print_table(console: Console, table: Table) -> None:
    """Wide names stay whole, in a log of 80 columns, too."""
    Console(width=max(console.width, WIDEST)).print(table)


def _place(configuration: KernelConfiguration) -> str:
    """Where the kernel stands: `kernels/ema/triton_ema.py:70: ema_update_kernel`."""
    function = getattr(configuration.kernel, "fn", None)
    if function is None:
        return "kernel without a source"
    code = function.__code__
    return f"{codegen.relative(f'{code.co_filename}:{code.co_firstlineno}')}: {function.__name__}"


def _update(
    config: Codegen, path: Path, stored: Records | None, records: list[CodegenRecord], console: Console
) -> str:
    """Writes the records, those of a partial selection among the others, and prints what changed."""
    import triton

    before = _by_label(stored.records if stored else [])
    kept = [r for r in before.values() if not config.selects(r.op, r.name, r.arch)]
    after = _by_label([*kept, *records])
    table, counts = codegen_tables.changes(before, after)
    if table.row_count:
        _print_table(console, table)
    codegen_records.write(path, triton.__version__, after.values())
    return f", saved to {codegen_records.STORED}: {counts}"
