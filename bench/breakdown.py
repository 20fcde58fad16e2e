"""Where the time of a training step goes, ours beside the published eager one.

    python -m jepa_fast.bench.breakdown            # bfloat16 autocast
    python -m jepa_fast.bench.breakdown float32

Time that a PyTorch operator spends in itself, by kind. "other" is what runs outside operators: Python, autograd, and
native kernels of this project. Steps are taken in turn on the same batches, so a disturbance meets both.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import cast, get_args

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from jepa_fast.bench.measure.float32 import full_float32
from jepa_fast.bench.report.terminal import make_console
from jepa_fast.bench.suites import ijepa_step
from jepa_fast.training.step import Precision

# Part of an operator's name -> its kind; the first that fits counts.
KINDS = {
    "matrix products": ("mm", "linear", "convolution", "mkldnn::"),
    "attention beside products": ("attention", "softmax"),
    "casts and copies": ("copy_", "_to_copy", "cat", "clone", "fill_", "zero_"),
    "LayerNorm": ("layer_norm",),
    "GELU": ("gelu",),
    "optimizer": ("adamw", "addcdiv", "addcmul", "lerp", "sqrt"),
    "gathers": ("gather", "index", "scatter"),
    "elementwise and sums": ("add", "mul", "sub", "div", "sum", "mean"),
}
OTHER = "other"


@full_float32()
def breakdown(precision: Precision, rounds: int = 3) -> dict[str, dict[str, float]]:
    """Seconds per step by kind, of "jepa_fast" and of "I-JEPA eager"."""
    trial = ijepa_step.build(precision, ijepa_step.BATCH_SIZE, torch.device("cpu"))
    contestants: dict[str, Callable[..., object]] = {"jepa_fast": trial.ours, **trial.baselines}
    for call in contestants.values():
        call(*trial.inputs[0])  # makes the optimizer's state
    seconds: dict[str, dict[str, float]] = {name: defaultdict(float) for name in contestants}
    for number in range(rounds):
        arguments = trial.inputs[number % len(trial.inputs)]
        for name, call in contestants.items():
            for kind, spent in profiled(partial(call, *arguments)).items():
                seconds[name][kind] += spent / rounds
    return seconds


def profiled(call: Callable[[], object]) -> dict[str, float]:
    """Seconds by kind of one call."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        begin = time.perf_counter()
        call()
        total = time.perf_counter() - begin
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    seconds[OTHER] += max(0.0, total - sum(seconds.values()))
    return seconds


def kind_of(operator: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in operator for part in parts)), OTHER)


def main(precision: Precision) -> None:
    found = breakdown(precision)
    table = Table(title=f"seconds of a step, {ijepa_step.MODEL} B={ijepa_step.BATCH_SIZE}, {precision}")
    table.add_column("kind")
    for name in found:
        table.add_column(name, justify="right")
        table.add_column("share", justify="right")
    for kind in (*KINDS, OTHER, "step"):
        cells = []
        for seconds in found.values():
            total = sum(seconds.values())
            spent = total if kind == "step" else seconds[kind]
            cells += [f"{spent:.3f}", f"{spent / total:.0%}"]
        table.add_row(kind, *cells, end_section=kind == OTHER)
    make_console().print(table)


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else "bfloat16"
    if wanted not in get_args(Precision):
        sys.exit(f"precision: expected one of {', '.join(get_args(Precision))}, got {wanted}")
    main(cast(Precision, wanted))
