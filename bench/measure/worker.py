"""One side of a comparison of two revisions: a process that builds cases of its own tree and times their calls.

Run as a file, with the tree to measure first on PYTHONPATH, so it relies on nothing of `jepa_fast.bench` but what every
revision has: `suites.load(name).cases()`, and a Trial's `ours`, `inputs`, `check` and `implementation`. It answers each
line of JSON on its standard input with one on its standard output; whatever else is printed goes to standard error.
"""

import itertools
import json
import os
import sys
import time
import traceback
from typing import Any

WAKING_S = 1e-3  # the other side's threads are asleep by then, as `sides.py` lets them spin
LONG_CALL_S = 0.1  # from here on the state of the caches at the beginning is nothing
LOST_ROWS, LOST_BYTES = 1024, 1 << 16  # that a handicap copies: more than caches hold, a row at a time
CASE = ("suite", "op", "shape", "dtype")


class Worker:
    def __init__(self) -> None:
        import torch

        import jepa_fast
        from jepa_fast.bench import suites

        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        self.torch, self.suites = torch, suites
        self.device = torch.device("cpu")
        self.trial: Any = None
        self.lost: Any = None
        self.origin = os.path.dirname(os.path.dirname(os.path.abspath(jepa_fast.__file__)))

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        return getattr(self, "do_" + request.pop("do"))(**request)

    def do_hello(self, device: str, threads: int | None) -> dict[str, Any]:
        self.device = self.torch.device(device)
        if threads is not None:
            self.torch.set_num_threads(threads)
        return {"origin": self.origin, "suites": self.suites.names()}

    def do_cases(self, suites: list[str], quick: bool) -> dict[str, Any]:
        """Every case by its names, and the suites that cannot be loaded."""
        cases, failures = [], {}
        for name in suites:
            try:
                found = list(self.suites.load(name).cases())
            except Exception as error:
                failures[name] = one_line(error)
                continue
            cases += [
                [name, case.op, case.shape, case.dtype]
                for case in found
                if (case.quick or not quick) and (self.device.type == "cuda" or not case.needs_cuda)
            ]
        return {"cases": cases, "failures": failures}

    def do_build(self, case: list[str], handicap: float) -> dict[str, Any]:
        """Make the case and prove that it is right. handicap: seconds that every call is made longer."""
        self.trial = None
        names = dict(zip(CASE, case, strict=True))
        try:
            found = next(
                own
                for own in self.suites.load(names["suite"]).cases()
                if (own.op, own.shape, own.dtype) == (names["op"], names["shape"], names["dtype"])
            )
            trial = found.build(self.device)
            if getattr(trial, "own_times", None) is not None:
                return {"reason": "it takes its own times: `jepa-fast bench` compares it"}
            check = trial.check()
        except Exception as error:
            return {"reason": one_line(error)}
        if not check.passed:
            return {"reason": check.reason}
        self.trial, self.handicap, self.quickest = trial, handicap, 0.0
        return {"reason": "", "implementation": trial.implementation, "inputs": len(trial.inputs)}

    def do_time(self, number: int, repeats: int) -> dict[str, Any]:
        """Seconds of one call with the inputs of that number. Calls before it bring back what the other side's turn has
        pushed out of the caches, and let the other side's threads fall asleep."""
        arguments = self.trial.inputs[number % len(self.trial.inputs)]
        awake = time.perf_counter() + WAKING_S
        while self.quickest < LONG_CALL_S:
            self._call(arguments)
            if time.perf_counter() >= awake:
                break
        if self.device.type == "cuda":
            return {"seconds": self._device_seconds(arguments, repeats)}
        begin = time.perf_counter()
        for _ in range(repeats):
            self._call(arguments)
        seconds = (time.perf_counter() - begin) / repeats
        self.quickest = min(self.quickest or seconds, seconds)
        return {"seconds": seconds}

    def do_drop(self) -> dict[str, Any]:
        self.trial = None
        return {}

    def _call(self, arguments: tuple[Any, ...]) -> None:
        self.trial.ours(*arguments)
        if self.handicap:
            self._lose(self.handicap)

    def _lose(self, seconds: float) -> None:
        """Copies memory for so long: after a mere wait, a call that is bound by memory is quicker than usual."""
        end = time.perf_counter() + seconds
        if self.lost is None:
            rows = self.torch.ones(LOST_ROWS, LOST_BYTES, dtype=self.torch.uint8)
            self.lost = itertools.cycle(rows.unbind())
        while time.perf_counter() < end:
            next(self.lost).copy_(next(self.lost))

    def _device_seconds(self, arguments: tuple[Any, ...], repeats: int) -> float:
        cuda = self.torch.cuda
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        cuda.synchronize(self.device)
        begin.record()
        for _ in range(repeats):
            self._call(arguments)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a suite prints must not stand between the answers
    try:
        worker = Worker()
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": one_line(error)}), file=answers)
        return
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            answer = {"error": one_line(error)}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
