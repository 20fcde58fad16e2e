"""A case of a suite, and the rows that it gives: first the errors, then the time, then the memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from msgspec.structs import replace

from jepa_fast.bench.measure.ceilings import Ceilings
from jepa_fast.bench.measure.compare import Call, Comparison, Times, compare
from jepa_fast.bench.measure.device_time import Replays, compare_replays
from jepa_fast.bench.measure.error import ErrorCheck
from jepa_fast.bench.measure.float32 import full_float32
from jepa_fast.bench.measure.host import host_overhead
from jepa_fast.bench.measure.memory import peak_memory, saved_for_backward
from jepa_fast.bench.measure.peers import choose, peer_of
from jepa_fast.bench.measure.records import Row
from jepa_fast.bench.measure.telemetry import Sampler


class OwnTimes(NamedTuple):
    """What a trial that takes its own times found, and what it is held against."""

    time: Times
    baseline: str
    baseline_time: Times | None


@dataclass(frozen=True)
class Trial:
    """A case with its tensors made: our call, the calls to hold it against, and the proof that it is right.

    ours, baselines: called with each of `inputs` in turn. check: compares our call with eager PyTorch on the
    same tensors. implementation: which one serves our call. raw_launch: instead of baselines, the launch of
    our kernel on prepared arguments, for a case that measures the host's cost.
    on_request: further baselines, which run only if their peers are named. bytes, flops: what one call has to move and
    to compute, over those of the case. own_times: instead of baselines, for what cannot be called again and again.
    """

    ours: Call
    check: Callable[[], ErrorCheck]
    implementation: str
    baselines: Mapping[str, Call] = field(default_factory=dict)
    inputs: Sequence[tuple[Any, ...]] = ((),)
    raw_launch: Call | None = None
    on_request: Mapping[str, Call] = field(default_factory=dict)
    bytes: int | None = None
    flops: int | None = None
    own_times: Callable[[], OwnTimes] | None = None


@dataclass(frozen=True)
class Case:
    """One line of a suite. `build` makes the tensors on a device; --quick leaves out what is not `quick`.

    needs_cuda: too large for a processor, or about what only a GPU has; left out elsewhere.
    by_products: its time is that of matrix products. --quick leaves it out where the machine has no fast ones of its
    dtype, and it would take minutes.
    needs: a package that it is about, by the name that pip knows, too; left out and listed where that is missing.
    bytes, flops: what one call has to read and write, and its multiplications and additions, where they are known;
    the row then shows its share of the machine's measured copy and matrix product.
    """

    op: str
    shape: str
    dtype: str
    build: Callable[[torch.device], Trial]
    quick: bool = True
    needs_cuda: bool = False
    by_products: bool = False
    needs: str = ""
    bytes: int | None = None
    flops: int | None = None


@full_float32()
def run_case(
    case: Case,
    *,
    suite: str,
    device: torch.device,
    budget_s: float,
    against: Sequence[str] = (),
    ceilings: Ceilings | None = None,
    sampler: Sampler | None = None,
) -> list[Row]:
    """One row per baseline. A case that fails its error budget, or cannot run, is one row with the reason.

    budget_s: wall seconds of each comparison. against: the peers to run, by name; none for those that the suite chose.
    ceilings: of this machine, for the shares. sampler: of the GPU's clocks and power.
    """
    row = Row(suite=suite, op=case.op, shape=case.shape, dtype=case.dtype, device=str(device))
    try:
        trial = case.build(device)
        offered = choose(trial.baselines, trial.on_request, against, device)
        own = "raw-launch" if trial.raw_launch is not None else "cold" if trial.own_times is not None else ""
        if against and not offered and own not in against:
            return []
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
        bytes=trial.bytes if trial.bytes is not None else case.bytes,
        flops=trial.flops if trial.flops is not None else case.flops,
    )
    if not check.passed:
        return [row]
    if trial.own_times is not None:
        return [_by_own_times(row, trial.own_times)]
    if trial.raw_launch is not None:
        return [_against_raw_launch(row, trial.ours, trial.raw_launch, budget_s)]
    rows = []
    replays = Replays(case.build, trial, device) if device.type == "cuda" else None
    for name, baseline in offered.items():
        row_against = replace(row, baseline=name, peer=peer_of(name))
        try:
            timed = _against_baseline(row_against, trial, baseline, device, budget_s, replays, sampler)
            rows.append(timed if ceilings is None else timed.with_shares(ceilings))
        except Exception as error:
            rows.append(replace(row_against, reason=_in_one_line(error)))
    return rows


def _by_own_times(row: Row, measure: Callable[[], OwnTimes]) -> Row:
    try:
        found = measure()
    except Exception as error:
        return replace(row, reason=_in_one_line(error))
    return replace(
        row,
        baseline=found.baseline,
        peer="cold",
        time=found.time,
        baseline_time=found.baseline_time,
        timer="process",
        error=None,
        eager_error=None,
        error_ratio=None,
    )


def _against_raw_launch(row: Row, ours: Call, raw_launch: Call, budget_s: float) -> Row:
    host = host_overhead(ours, raw_launch, budget_s=budget_s)
    return replace(
        row,
        baseline="raw launch",
        peer="raw-launch",
        time=host.call,
        baseline_time=host.raw_launch,
        host_overhead_us=host.microseconds,
        timer="wall",
    )


def _against_baseline(
    row: Row,
    trial: Trial,
    baseline: Call,
    device: torch.device,
    budget_s: float,
    replays: Replays | None,
    sampler: Sampler | None,
) -> Row:
    watch = sampler.watch() if sampler is not None else None
    between = watch.between if watch is not None else (lambda: None)
    found: Comparison | None = None
    host_time: Times | None = None
    timer = "wall"
    if replays is not None:
        found = compare_replays(replays, row.baseline, baseline, budget_s=budget_s, between=between)
        timer = "events" if found is None else "graph"
    if found is None:
        found = compare(
            trial.ours, baseline, budget_s=budget_s, inputs=trial.inputs, device=device, between=between
        )
    if replays is not None:
        host_time = replays.host_time(trial)
    telemetry = None if watch is None else watch.summary(found.a.median)
    row = replace(row.with_times(found), timer=timer, host_time=host_time, telemetry=telemetry)
    compiles = row.peer in ("compile", "flex")  # hooks on a compiled call make it compile anew
    return replace(
        row,
        peak_bytes=_largest(peak_memory, trial.ours, trial.inputs, device),
        baseline_peak_bytes=_largest(peak_memory, baseline, trial.inputs, device),
        saved_bytes=_largest(saved_for_backward, trial.ours, trial.inputs[:1], device),
        baseline_saved_bytes=None
        if compiles
        else _largest(saved_for_backward, baseline, trial.inputs[:1], device),
    )


def _largest(
    measure: Callable[[Callable[[], object], torch.device], int],
    call: Call,
    inputs: Sequence[tuple[Any, ...]],
    device: torch.device,
) -> int:
    # `compare` has called it before: what is made once and kept, such as optimizer state, is no part of it.
    return max(measure(partial(call, *arguments), device) for arguments in inputs)


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
