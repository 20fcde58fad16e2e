"""A case of a suite, and the rows that it gives: first the errors, then the time, then the memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from msgspec.structs import replace

from jepa_fast.bench.measure.compare import Call, compare
from jepa_fast.bench.measure.error import ErrorCheck
from jepa_fast.bench.measure.float32 import full_float32
from jepa_fast.bench.measure.host import host_overhead
from jepa_fast.bench.measure.memory import peak_memory
from jepa_fast.bench.measure.records import Row


@dataclass(frozen=True)
class Trial:
    """A case with its tensors made: our call, the calls to hold it against, and the proof that it is right.

    ours, baselines: called with each of `inputs` in turn. check: compares our call with eager PyTorch on the
    same tensors. implementation: which one serves our call. raw_launch: instead of baselines, the launch of
    our kernel on prepared arguments, for a case that measures the host's cost.
    """

    ours: Call
    check: Callable[[], ErrorCheck]
    implementation: str
    baselines: Mapping[str, Call] = field(default_factory=dict)
    inputs: Sequence[tuple[Any, ...]] = ((),)
    raw_launch: Call | None = None


@dataclass(frozen=True)
class Case:
    """One line of a suite. `build` makes the tensors on a device; --quick leaves out what is not `quick`.

    needs_cuda: too large for a processor, or about what only a GPU has; left out elsewhere.
    """

    op: str
    shape: str
    dtype: str
    build: Callable[[torch.device], Trial]
    quick: bool = True
    needs_cuda: bool = False


@full_float32()
def run_case(case: Case, *, suite: str, device: torch.device, budget_s: float) -> list[Row]:
    """One row per baseline. A case that fails its error budget, or cannot run, is one row with the reason.

    budget_s: wall seconds of each comparison.
    """
    row = Row(suite=suite, op=case.op, shape=case.shape, dtype=case.dtype, device=str(device))
    try:
        trial = case.build(device)
        check = trial.check()
    except Exception as error:  # whatever stops one case must not cost the others their rows
        return [replace(row, reason=_in_one_line(error))]
    row = replace(
        row,
        implementation=trial.implementation,
        error=check.error,
        eager_error=check.eager_error,
        error_ratio=check.ratio,
        reason=check.reason,
    )
    if not check.passed:
        return [row]
    if trial.raw_launch is not None:
        return [_against_raw_launch(row, trial.ours, trial.raw_launch, budget_s)]
    rows = []
    for name, baseline in trial.baselines.items():
        row_against = replace(row, baseline=name)
        try:
            rows.append(_against_baseline(row_against, trial, baseline, device, budget_s))
        except Exception as error:
            rows.append(replace(row_against, reason=_in_one_line(error)))
    return rows


def _against_raw_launch(row: Row, ours: Call, raw_launch: Call, budget_s: float) -> Row:
    host = host_overhead(ours, raw_launch, budget_s=budget_s)
    return replace(
        row,
        baseline="raw launch",
        time=host.call,
        baseline_time=host.raw_launch,
        host_overhead_us=host.microseconds,
    )


def _against_baseline(row: Row, trial: Trial, baseline: Call, device: torch.device, budget_s: float) -> Row:
    found = compare(trial.ours, baseline, budget_s=budget_s, inputs=trial.inputs, device=device)
    return replace(
        row.with_times(found),
        peak_bytes=_largest_peak(trial.ours, trial.inputs, device),
        baseline_peak_bytes=_largest_peak(baseline, trial.inputs, device),
    )


def _largest_peak(call: Call, inputs: Sequence[tuple[Any, ...]], device: torch.device) -> int:
    # `compare` has called it before: what is made once and kept, such as optimizer state, is no part of it.
    return max(peak_memory(partial(call, *arguments), device) for arguments in inputs)


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
