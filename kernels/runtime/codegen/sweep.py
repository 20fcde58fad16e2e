"""Finds every kernel configuration in the rooms and compiles them on all cores."""

import functools
import importlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..configuration import KernelConfiguration
from ..rooms import FOLDER, PACKAGE
from . import evidence, sass
from .compile import CodegenRecord, Cubin, compile_cubin, describe

_BATCH = 32  # kernels to one run of the disassembler: its start then costs a thirtieth of their compilation
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """One configuration of a kernel module, for one architecture."""

    op: str
    module: str
    name: str
    arch: int

    @property
    def label(self) -> str:
        """How messages name the job; the same as `CodegenRecord.label`."""
        return f"{self.op}/{self.name} sm_{self.arch}"


def find_modules(op: str, rooms: Path = FOLDER, package: str = PACKAGE) -> list[str]:
    """The kernel modules of an op's room, `triton_*.py`, as importable names."""
    return [f"{package}.{op}.{path.stem}" for path in sorted((rooms / op).glob("triton_*.py"))]


@functools.cache
def configurations(module: str) -> dict[str, KernelConfiguration]:
    """The configurations that a kernel module lists, by name.

    Raises ValueError if it lists none or uses a name twice.
    """
    listing = getattr(importlib.import_module(module), "configurations", None)
    if listing is None:
        raise ValueError(f"{module}: expected a function configurations() -> Iterable[KernelConfiguration]")
    by_name: dict[str, KernelConfiguration] = {}
    for configuration in listing():
        if by_name.setdefault(configuration.name, configuration) is not configuration:
            raise ValueError(f"{module}: configurations() lists {configuration.name} twice")
    if not by_name:
        raise ValueError(f"{module}: configurations() lists none")
    return by_name


def compile_jobs(
    jobs: Iterable[Job], processes: int | None = None
) -> Iterator[tuple[Job, CodegenRecord | str]]:
    """Compiles in `processes` processes (default: one per core) and yields each job when it is done, with its
    record or with the reason why it does not compile.

    The processes start afresh: they compile even where this one interprets kernels (TRITON_INTERPRET=1).
    Triton's cache goes to a folder of this call's own, unless TRITON_CACHE_DIR names one: nothing old is
    read, and the home folder may be read-only.
    """
    processes = processes or len(os.sched_getaffinity(0))
    yield from _in_processes(_compile, _batches(jobs, processes), processes)


def find_evidence(failures: Iterable[tuple[Job, str]]) -> dict[tuple[Job, str], list[str]]:
    """The instructions that show each failure, a job and `Failure.kind`, as lines of text.

    Compiles the jobs once more, as `compile_jobs` does.
    """
    by_job: dict[Job, list[str]] = {}
    for job, kind in failures:
        if kind not in by_job.setdefault(job, []):
            by_job[job].append(kind)
    work = [[(job, tuple(kinds))] for job, kinds in by_job.items()]
    found = _in_processes(_show, work, len(os.sched_getaffinity(0)))
    return {(job, kind): lines for (job, _), shown in found for kind, lines in shown.items()}


def _in_processes(
    work: Callable[[list[Item]], list[Result]], batches: list[list[Item]], processes: int
) -> Iterator[tuple[Item, Result]]:
    """`work` on each batch, in fresh processes; each item with its result when its batch is done."""
    if not batches:
        return
    with (
        tempfile.TemporaryDirectory(prefix="jepa_fast_codegen_") as cache,
        ProcessPoolExecutor(
            min(processes, len(batches)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(os.environ.get("TRITON_CACHE_DIR", cache),),
        ) as pool,
    ):
        futures = {pool.submit(work, batch): batch for batch in batches}
        try:
            for future in as_completed(futures):
                yield from zip(futures[future], future.result(), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _batches(jobs: Iterable[Job], processes: int) -> list[list[Job]]:
    """Jobs of one architecture each, in portions that share a disassembler run and keep all processes busy."""
    by_arch: dict[int, list[Job]] = {}
    for job in jobs:
        by_arch.setdefault(job.arch, []).append(job)
    longest = max((len(same) for same in by_arch.values()), default=0)
    size = min(_BATCH, max(1, longest // (2 * processes)))
    return [same[i : i + size] for same in by_arch.values() for i in range(0, len(same), size)]


def _start_worker(cache: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = cache


def _compile(batch: list[Job]) -> list[CodegenRecord | str]:
    results: list[CodegenRecord | str | Cubin] = []
    for job in batch:
        try:
            results.append(compile_cubin(configurations(job.module)[job.name], job.arch))
        except Exception as error:  # the compiler's errors have no common base, and the other kernels go on
            results.append(_reason("does not compile", error))
    cubins = [result for result in results if isinstance(result, Cubin)]
    codes = iter(sass.disassemble([cubin.code for cubin in cubins], batch[0].arch)) if cubins else iter(())
    return [
        _describe(job, result, next(codes)) if isinstance(result, Cubin) else result
        for job, result in zip(batch, results, strict=True)
    ]


def _describe(job: Job, cubin: Cubin, code: sass.MachineCode) -> CodegenRecord | str:
    try:
        return describe(configurations(job.module)[job.name], job.arch, job.op, cubin, code)
    except ValueError as error:
        return _reason("cannot be read", error)


def _reason(what: str, error: Exception) -> str:
    return f"{what}: {type(error).__name__}: {' '.join(str(error).split())}"


def _show(batch: list[tuple[Job, tuple[str, ...]]]) -> list[dict[str, list[str]]]:
    shown = []
    for job, kinds in batch:
        cubin = compile_cubin(configurations(job.module)[job.name], job.arch)
        shown.append({kind: evidence.excerpt(cubin.code, kind) for kind in kinds})
    return shown
