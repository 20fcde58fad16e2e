"""The two sides of a comparison of revisions: their trees, built apart, and a process of each to ask."""

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from jepa_fast.bench.measure.compare import ENOUGH_ROUNDS, Comparison
from jepa_fast.bench.measure.statistics import Interval, judge_change, ratio_interval

WORKER = Path(__file__).with_name("worker.py")
SHORTEST_SAMPLE_S = 0.5e-3  # short enough to fall between two disturbances
PRECISION = 0.01  # relative half-width of the interval at which measuring stops
LEAST_ROUNDS = 7
MOST_SIDE_ROUNDS = 4000
BLOCKS = 40  # of rounds: a bootstrap of fewer is too sure of itself
POSSIBLE_SLOWDOWN = 1.04  # that the interval leaves open
LONGER = 3.0  # times the budget, while a slowdown is possible and not sure
WORKING_TREE = "."
SPINS = "10000"  # some tenths of a millisecond: longer than the gaps inside an op, shorter than WAKING_S of the worker
# Memory stays with the process: whether glibc gives it back after a call and faults it in again at the next one hangs
# on what else lies in the heap, and can double the time of a call on one side alone.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
ENDS_IN_S = 10.0

CaseName = tuple[str, str, str, str]  # suite, op, shape, dtype


class WorkerError(RuntimeError):
    """A worker that could not do what it was asked for."""


@dataclass(frozen=True)
class Side:
    """A version of the project. target: the folder that it is installed in, None for this very installation.

    handicap: share of a call's time by which it is made slower on purpose, to prove that this is found. threads: of the
    CPU, None for as many as PyTorch takes.
    """

    name: str
    target: Path | None = None
    handicap: float = 0.0
    threads: int | None = None


class Worker:
    """A process that times the calls of one side. As a context manager it ends with the block."""

    def __init__(self, side: Side, device: str = "cpu") -> None:
        self.side, self.device = side, device
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            _command(side.target),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(side.target),
        )
        try:
            hello = self.ask("hello", device=device, threads=side.threads)
            self.suites: list[str] = hello["suites"]
            if side.target is not None and Path(hello["origin"]).resolve() != side.target.resolve():
                raise WorkerError(f"{side.name}: it measures {hello['origin']}, not {side.target}")
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """One request and its answer. Raises WorkerError with the reason."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.side.name}: its process has ended: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.side.name}: {answer['error']}")
        return answer

    def cases(self, suites: list[str], quick: bool) -> tuple[list[CaseName], dict[str, str]]:
        """The cases of those suites that this side has, and why a suite could not be loaded."""
        answer = self.ask("cases", suites=[name for name in suites if name in self.suites], quick=quick)
        found = [(suite, op, shape, dtype) for suite, op, shape, dtype in answer["cases"]]
        return found, answer["failures"]

    def build(self, case: CaseName) -> tuple[str, int]:
        """Make a case and check its errors: why it cannot be timed, else "", and the number of its inputs."""
        answer = self.ask("build", case=case, handicap=0.0)
        if not answer["reason"] and self.side.handicap:
            once = min(self.seconds(0, 1) for _ in range(5))
            answer = self.ask("build", case=case, handicap=self.side.handicap * once)
        return answer["reason"], answer.get("inputs", 0)

    def seconds(self, number: int, repeats: int) -> float:
        """Of one call of the case that was built, with those of its inputs."""
        return self.ask("time", number=number, repeats=repeats)["seconds"]

    def close(self) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it has ended already
                self._process.stdin.close()
        try:
            self._process.wait(ENDS_IN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _last_words(self) -> str:
        self._process.wait(ENDS_IN_S)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def compare_sides(
    old: Worker, new: Worker, case: CaseName, *, budget_s: float, precision: float = PRECISION
) -> Comparison | str:
    """How many times faster `new` is than `old`, or why this cannot be said.

    The processes take turns sample by sample, without exception: each sample then has the other side's before it, whose
    traces in caches and in the scheduler would favour a side that were timed twice in a row. A round has two samples of
    each; the two of one side give the noise floor. Rounds are added until the interval is narrower than `precision` or
    the time is spent, and up to three times that time while a slowdown is possible and not sure.
    """
    count = 1
    for worker in (old, new):
        try:
            reason, count = worker.build(case)
        except WorkerError as error:
            return str(error)
        if reason:
            return f"{worker.side.name}: {reason}"
    try:
        return _in_turns(old, new, count, budget_s, precision)
    except WorkerError as error:
        return str(error)


def _in_turns(old: Worker, new: Worker, inputs: int, budget_s: float, precision: float) -> Comparison:
    started = time.perf_counter()
    # The very first call may be far slower than the rest.
    once = [min(worker.seconds(0, 1) for _ in range(3)) for worker in (new, old)]
    repeats = max(1, math.ceil(SHORTEST_SAMPLE_S / max(*once, 1e-7)))
    times: dict[Worker, tuple[list[float], list[float]]] = {new: ([], []), old: ([], [])}
    check_at = ENOUGH_ROUNDS
    for rounds in itertools.count(1):
        for turn in (0, 1):
            for worker in (new, old):
                times[worker][turn].append(worker.seconds(rounds, repeats))
        spent = time.perf_counter() - started
        over = rounds >= LEAST_ROUNDS and spent >= budget_s
        if over or rounds == check_at:
            found = of_turns(times[new], times[old], inputs)
            narrow = math.log(found.ci_high / found.ci_low) / 2 <= precision
            open_question = found.verdict == "cannot tell" and found.ci_low < 1 / POSSIBLE_SLOWDOWN
            if narrow or rounds >= MOST_SIDE_ROUNDS or (over and not open_question):
                return found
            if spent >= LONGER * budget_s and rounds >= LEAST_ROUNDS:
                return found
            check_at = math.ceil(1.3 * rounds)
    raise AssertionError("unreachable: counting has no end")


def of_turns(
    new: tuple[list[float], list[float]], old: tuple[list[float], list[float]], inputs: int = 1
) -> Comparison:
    """From the two samples of each round on both sides.

    What disturbs a call only ever makes it longer, and on a shared machine often by a multiple: of neighbouring rounds
    the quickest sample of each side is taken, and the ratio of those is what the interval is of. With several inputs,
    whose costs differ, a sample is compared with its own kind alone. The noise floor is what the two samples of one
    side differ by, not the end of that interval: a change has to be found by other processes once more.
    """
    blocks = [_quickest(side, inputs) for side in (new, old)]
    either = [np.minimum(*pair).tolist() for pair in blocks]
    found = Comparison.of(either[0], either[1], twins=(blocks[0][0], blocks[0][1]))
    floor = math.exp(max(abs(math.log(ratio_interval(*block).ratio)) for block in blocks))
    interval = Interval(1 / found.ratio, 1 / found.ci_high, 1 / found.ci_low)
    return replace(found, noise_floor=floor, verdict=judge_change(interval, floor))


def _quickest(turns: tuple[list[float], list[float]], inputs: int) -> tuple[list[float], list[float]]:
    """Of each turn, the quickest sample of each block of rounds that had the same input."""
    first: list[float] = []
    second: list[float] = []
    for number in range(inputs):
        own = [times[number::inputs] for times in turns]
        size = max(1, len(own[0]) // max(1, BLOCKS // inputs))
        for kept, times in ((first, own[0]), (second, own[1])):
            kept += [min(times[start : start + size]) for start in range(0, len(times), size)]
    return first, second


@contextmanager
def built(names: tuple[str, str], report: Any = lambda line: None) -> Iterator[tuple[Side, Side]]:
    """Both git revisions, each installed from a worktree of its own into a folder of its own; all is gone afterwards.

    "." is the working tree as it is. The same revision twice is built once.
    Raises ValueError for an unknown revision and RuntimeError for one that does not build.
    """
    root = _git("rev-parse", "--show-toplevel")
    if root is None:
        raise ValueError("revisions: the current folder is not in a git repository")
    commits = {name: _commit(name) for name in names}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jepa-fast-")))
        targets: dict[str, Path] = {}
        for name in names:
            commit = commits[name]
            if commit not in targets:
                report(f"building {name}" + ("" if name == commit else f" ({commit[:12]})"))
                source = Path(root)
                if commit != WORKING_TREE:
                    source = folder / f"tree-{len(targets)}"
                    stack.enter_context(_worktree(Path(root), commit, source))
                targets[commit] = folder / f"site-{len(targets)}"
                _install(name, source, targets[commit], folder / f"build-{len(targets)}")
        first, second = (Side(name, targets[commits[name]]) for name in names)
        yield first, second


def _commit(name: str) -> str:
    if name == WORKING_TREE:
        return name
    commit = None if name.startswith("-") else _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if commit is None:
        raise ValueError(f"revision: expected a record file or a git revision, got {name}")
    return commit


@contextmanager
def _worktree(root: Path, commit: str, folder: Path) -> Iterator[None]:
    _checked("git", "-C", str(root), "worktree", "add", "--detach", "--quiet", str(folder), commit)
    try:
        yield
    finally:
        subprocess.run(
            ["git", "-C", str(root), "worktree", "remove", "--force", str(folder)],
            capture_output=True,
            check=False,
        )


def _install(name: str, source: Path, target: Path, scratch: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # Without isolation nothing is downloaded; with it, pip fetches what the build needs.
    if find_spec("scikit_build_core") and find_spec("tvm_ffi"):
        pip.append("--no-build-isolation")
    try:
        _checked(*pip, f"--config-settings=build-dir={scratch}", "--target", str(target), str(source))
    except RuntimeError as error:
        raise RuntimeError(f"{name}: it does not build: {error}") from None


def _checked(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        told = [line for line in lines if "error" in line.lower()] or lines
        raise RuntimeError(told[-1].strip() if told else f"{command[0]} ended with {done.returncode}")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _command(target: Path | None) -> list[str]:
    # -S: an editable installation puts itself before every path, by a file that `site` would read.
    return [sys.executable, "-P", *([] if target is None else ["-S"]), str(WORKER)]


def _environment(target: Path | None) -> dict[str, str]:
    # As it comes, GNU OpenMP lets threads without work spin for milliseconds, on the cores that the other side needs.
    spin = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": SPINS}
    settings = {**spin, **ALLOCATOR, **os.environ}
    if target is None:
        return settings
    here = [path for path in sys.path if path and Path(path).is_dir() and path != os.getcwd()]
    return {**settings, "PYTHONPATH": os.pathsep.join([str(target), *here])}
