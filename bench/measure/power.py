"""How often a comparison is wrong: the same version against itself, and against itself made slower.

    python -m jepa_fast.bench.measure.power                     # 20 runs of each, of this very tree
    python -m jepa_fast.bench.measure.power --new REVISION      # a slowdown that was written into a kernel
    python -m jepa_fast.bench.measure.power --load 1            # beside a process that keeps a core busy in bursts

Every run starts new processes and measures each case as `jepa-fast compare` does, again where that does. Exit code: 0
if the same version was never called slower, and the slower one was in all but one run of twenty; else 1.
"""

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from jepa_fast.bench.measure.budgets import Budgets
from jepa_fast.bench.measure.changes import Change, measure_changes
from jepa_fast.bench.measure.sides import Side, built

# Quick cases of three kinds: bound by memory, short, and of many small calls.
SUITES = ("ema", "latent_loss", "rope")
FOUND_SHARE = 0.95
BURSTS = """
import random, time
while True:
    end = time.perf_counter() + random.expovariate(20)
    while time.perf_counter() < end: pass
    time.sleep(random.expovariate(20))
"""


def trials(
    old: Side, new: Side, *, runs: int, suites: Sequence[str], cases: int, budget_s: float
) -> Iterator[list[Change]]:
    """The changes of each run. cases: of each suite, the first so many."""
    for number in range(1, runs + 1):
        found = []
        for suite in suites:
            changes = measure_changes(
                old, new, suites=[suite], quick=True, budget_s=budget_s, budgets=Budgets(), first=cases
            )
            found += [change for change in changes if change.status in ("", "failed")]
        told = (f"{c.ratio:.3f} {c.verdict}" if c.ratio is not None else c.note for c in found)
        print(f"  run {number}: {', '.join(told)}", flush=True)
        yield found


def report(title: str, found: Sequence[list[Change]], seconds: float) -> tuple[int, int, int]:
    """Prints a line for each case; runs in which any case is confirmed slower, in which all are, and all runs."""
    by_case: dict[tuple[str, ...], list[Change]] = {}
    for changes in found:
        for change in changes:
            by_case.setdefault(change.case, []).append(change)
    print(f"{title}: {len(found)} runs, {seconds / max(len(found), 1):.1f} s each")
    for case, changes in by_case.items():
        verdicts = Counter(change.verdict or change.note for change in changes)
        ratios = sorted(change.ratio for change in changes if change.ratio is not None)
        spread = (
            f"new / old {ratios[0]:.3f} to {ratios[-1]:.3f}, median {ratios[len(ratios) // 2]:.3f}"
            if ratios
            else ""
        )
        told = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common())
        print(f"  {case[0]}, {case[3]}: {told}; {spread}")
    slower = [[change.verdict == "slower" for change in changes] for changes in found]
    return sum(map(any, slower)), sum(map(all, slower)), len(found)


@contextmanager
def _load(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", BURSTS]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--slower", type=float, default=0.10, help="share by which each call is made longer")
    parser.add_argument("--old", help="git revision to compare, instead of this installation with itself")
    parser.add_argument("--new", help="git revision that is slower, instead of calls made longer")
    parser.add_argument("--suites", nargs="+", default=list(SUITES))
    parser.add_argument("--cases", type=int, default=1, help="of each suite, the first so many quick ones")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds of one comparison")
    parser.add_argument("--load", type=int, default=0, help="processes beside it that burn a core in bursts")
    parser.add_argument("--threads", type=int, help="CPU threads of each side")
    parser.add_argument("--only", choices=("same", "slower"), help="one half of it")
    options = parser.parse_args(arguments)
    good = True
    with ExitStack() as stack:
        old, new = Side("the same"), Side("made slower", handicap=options.slower)
        if options.old or options.new:
            old, new = stack.enter_context(built((options.old or "HEAD", options.new or options.old), print))
        if options.new is None:
            new = Side("made slower", old.target, options.slower)
        old, new = (replace(side, threads=options.threads) for side in (old, new))
        stack.enter_context(_load(options.load))
        settings = {
            "runs": options.runs,
            "suites": options.suites,
            "cases": options.cases,
            "budget_s": options.budget,
        }
        for title, side in (("same", old), ("slower", new)):
            if options.only in (None, title):
                begin = time.perf_counter()
                found = list(trials(old, side, **settings))
                any_slower, all_slower, runs = report(
                    f"{title}: {old.name} against {side.name}", found, time.perf_counter() - begin
                )
                if title == "same":
                    print(f"called slower in {any_slower} of {runs} runs (expected 0)")
                    good = good and any_slower == 0
                else:
                    print(
                        f"every case called slower in {all_slower} of {runs} runs (expected at least {FOUND_SHARE:.0%})"
                    )
                    good = good and all_slower >= FOUND_SHARE * runs
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
