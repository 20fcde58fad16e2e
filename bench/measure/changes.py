"""What became faster or slower from one version to another: from two records, or from two sides timed in turn."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Literal

import msgspec
from msgspec.structs import replace

from jepa_fast.bench.measure.budgets import Budgets
from jepa_fast.bench.measure.compare import Comparison, Times
from jepa_fast.bench.measure.machine import Machine
from jepa_fast.bench.measure.records import Record, Row
from jepa_fast.bench.measure.sides import (
    POSSIBLE_SLOWDOWN,
    CaseName,
    Side,
    Worker,
    WorkerError,
    compare_sides,
)
from jepa_fast.bench.measure.statistics import Interval, Verdict, judge_change

Failure = Literal["slower", "unconfirmed", "failed", "gone"]
Key = tuple[str, str, str, str, str, str]  # of a row: its case, then its device and its baseline
MOVED: tuple[Verdict, ...] = ("slower", "faster")
FAILURES: tuple[Failure, ...] = ("slower", "unconfirmed", "failed", "gone")

# Two runs of one program at two times differ by a few per cent on shared machines: below this nothing is a change.
RECORD_FLOOR = 1.05
CONFIRMING_SHARE = 2.0  # of the budget: the second look may take longer than the first
# What decides whether a record stands on the machine of another. Code, its revision, and memory are none of it.
MACHINE_FIELDS = (
    "cpu",
    "instruction_sets",
    "cores",
    "threads",
    "gpu",
    "gpu_driver",
    "torch",
    "triton",
    "python",
)


class Change(msgspec.Struct, kw_only=True):
    """One case in both versions. `ratio` is the new time over the old one: 1.10 is 10 % slower.

    confirmed: whether another measurement found the change, too; None where there was no change, or no other
    measurement. allowed: the share by which this case may become slower. status: "gone", "new" or "failed" instead of
    figures, with the note as the reason.
    """

    suite: str
    op: str
    shape: str
    dtype: str
    device: str = ""
    baseline: str = ""
    old: Times | None = None
    new: Times | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    verdict: Verdict | None = None
    confirmed: bool | None = None
    allowed: float = 0.0
    status: Literal["", "gone", "new", "failed"] = ""
    note: str = ""
    old_peak_bytes: int | None = None
    new_peak_bytes: int | None = None

    @property
    def case(self) -> CaseName:
        return self.suite, self.op, self.shape, self.dtype

    @property
    def failure(self) -> Failure | None:
        """What a gate may stop for."""
        if self.verdict == "slower":
            return "slower" if self.confirmed else "unconfirmed"
        return self.status if self.status in ("gone", "failed") else None


def measure_changes(
    old: Side,
    new: Side,
    *,
    suites: Sequence[str],
    quick: bool,
    budget_s: float,
    budgets: Budgets,
    device: str = "cpu",
    first: int | None = None,
    announce: Callable[[str, int], None] = lambda case, total: None,
) -> Iterator[Change]:
    """Every case of both sides, timed in turn; a change is measured once more, in new processes, before it is one.

    suites: none for all. budget_s: of one comparison. first: of the cases, so many alone. announce: called before each
    comparison with its case and the number of all.
    """
    moved: list[Change] = []
    with ExitStack() as stack:
        before, after = (stack.enter_context(Worker(side, device)) for side in (old, new))
        chosen = list(suites) or sorted({*before.suites, *after.suites})
        mine, failures = before.cases(chosen, quick)
        theirs, new_failures = after.cases(chosen, quick)
        failures = {**failures, **new_failures}
        for name, reason in failures.items():
            yield Change(suite=name, op="", shape="", dtype="", status="failed", note=reason)
        both = [case for case in theirs if case in mine][:first]
        for case, status in _one_sided(mine, theirs):
            if case[0] not in failures:
                where = old.name if status == "gone" else new.name
                yield _named(case, status=status, note=f"only in {where}")
        for case in both:
            if budgets.skipped(*case):
                continue
            announce(f"{case[0]}: {case[2]} {case[3]}", len(both))
            found = compare_sides(before, after, case, budget_s=budget_s)
            change = _from_sides(case, found, budgets.slower_of(*case))
            suspected = change.ratio is not None and change.ratio > POSSIBLE_SLOWDOWN
            if change.verdict in MOVED or suspected:
                moved.append(change)
            else:
                yield change
    if moved:
        yield from _measured_again(old, new, moved, budget_s * CONFIRMING_SHARE, device, announce)


def _measured_again(
    old: Side,
    new: Side,
    moved: list[Change],
    budget_s: float,
    device: str,
    announce: Callable[[str, int], None],
) -> Iterator[Change]:
    """Once more by new processes, the other one started first: what lay in the placement of one is gone. And a third
    time where one measurement found a change and one did not."""
    looks = [[change] for change in moved]
    for new_first in (True, False):
        with ExitStack() as stack:
            sides = (new, old) if new_first else (old, new)
            workers = [stack.enter_context(Worker(side, device)) for side in sides]
            after, before = workers if new_first else workers[::-1]
            for own in looks:
                first = own[0]
                announce(f"once more: {first.suite}: {first.shape} {first.dtype}", len(looks))
                found = compare_sides(before, after, first.case, budget_s=budget_s)
                own.append(_from_sides(first.case, found, first.allowed))
        yield from (confirm(*own) for own in looks if not (new_first and _is_open(own)))
        looks = [own for own in looks if _is_open(own)]
        if not looks:
            return


def _is_open(looks: Sequence[Change]) -> bool:
    """Whether a change was found, but none twice."""
    found = [look.verdict for look in looks if look.verdict in MOVED]
    return 0 < len(found) == len(set(found))


def confirm(*looks: Change) -> Change:
    """One case's measurements as one change: the verdict that two of them share; without a second one it stays open."""
    again = [look for look in looks[1:] if look.ratio is not None]
    if not again:
        told = "; ".join(part for part in (looks[0].note, "measured once") if part)
        return replace(looks[0], confirmed=None, note=told)
    ratios = [f"{look.ratio:.2f} [{look.low:.2f}, {look.high:.2f}]" for look in again]
    told = f"measured again: {', '.join(ratios)}"
    for verdict in MOVED:
        found = [look for look in looks if look.verdict == verdict]
        if len(found) > 1:
            return replace(found[0], confirmed=True, note=told)
    return replace(looks[0], verdict="cannot tell", confirmed=False, note=f"not confirmed: {told}")


def record_changes(
    old: Record, new: Record, budgets: Budgets, again: Record | None = None
) -> Iterator[Change]:
    """Row by row, by what each row's own baseline took in the same run: what slowed the whole machine slowed that, too.

    again: a second record of the new version. Without it a slowdown stays unconfirmed: the second series of calls that
    each row holds is of the same rounds, and repeats what disturbed that run.
    """
    before, after = _rows(old), _rows(new)
    second = {} if again is None else _rows(again)
    broken = _broken(before, after)
    told = set()
    for key in {**before, **after}:
        case, place = key[:4], key[:5]
        if budgets.skipped(*case):
            continue
        if place in broken:
            if place not in told:
                told.add(place)
                yield broken[place]
            continue
        allowed = budgets.slower_of(*case)
        if key not in before or key not in after:
            status: Literal["gone", "new"] = "gone" if key in before else "new"
            yield replace(
                _named(case, status=status, note=f"only in {'OLD' if status == 'gone' else 'NEW'}"),
                device=key[4],
                baseline=key[5],
            )
            continue
        change = _from_rows(before[key], after[key], allowed)
        if change.verdict in MOVED:
            looks = [_from_rows(before[key], second[key], allowed)] if key in second else []
            change = confirm(change, *looks)
        yield change


def differing_fields(old: Machine, new: Machine) -> list[str]:
    """What of the machine differs, each as `name: old, new`."""
    return [
        f"{name}: {getattr(old, name)}, {getattr(new, name)}"
        for name in MACHINE_FIELDS
        if getattr(old, name) != getattr(new, name)
    ]


def _rows(record: Record) -> Mapping[Key, Row]:
    return {(row.suite, row.op, row.shape, row.dtype, row.device, row.baseline): row for row in record.rows}


def _broken(before: Mapping[Key, Row], after: Mapping[Key, Row]) -> dict[tuple[str, ...], Change]:
    """By case and device what failed as a whole, each as one change. Such a case is a single row without a baseline,
    which stands for all the rows that the other record has of it."""
    found: dict[tuple[str, ...], Change] = {}
    for key, row in after.items():
        if row.reason and not row.baseline:
            change = _named(key[:4], status="failed", note=f"NEW: {row.reason}")
            found[key[:5]] = replace(change, device=row.device)
    there = {key[:5] for key in after}
    for key, row in before.items():
        if row.reason and not row.baseline and key[:5] in there and key[:5] not in found:
            change = _named(key[:4], status="new", note=f"OLD: {row.reason}")
            found[key[:5]] = replace(change, device=row.device)
    return found


def _from_rows(old: Row, new: Row, allowed: float) -> Change:
    change = Change(
        suite=new.suite,
        op=new.op,
        shape=new.shape,
        dtype=new.dtype,
        device=new.device,
        baseline=new.baseline,
        old=old.time,
        new=new.time,
        allowed=allowed,
        old_peak_bytes=old.peak_bytes,
        new_peak_bytes=new.peak_bytes,
    )
    if new.reason or old.reason:
        which, reason = ("NEW", new.reason) if new.reason else ("OLD", old.reason)
        return replace(change, status="failed" if new.reason else "new", note=f"{which}: {reason}")
    times = (old.time, new.time, old.baseline_time, new.baseline_time)
    if any(one is None or one.median <= 0 for one in times):
        return replace(change, status="failed", note="a time is missing")
    old_time, new_time, old_base, new_base = (one.median for one in times if one is not None)
    centre = math.log(new_time / old_time) - math.log(new_base / old_base)
    # Half-widths of two independent intervals add in squares.
    spread = math.hypot(_half_width(old), _half_width(new))
    floor = max(old.noise_floor or 1.0, new.noise_floor or 1.0, RECORD_FLOOR)
    interval = Interval(math.exp(centre), math.exp(centre - spread), math.exp(centre + spread))
    drift = new_base / old_base
    note = ""
    if max(drift, 1 / drift) > RECORD_FLOOR:
        note = f"the baseline's time changed by {drift - 1:+.0%} itself, which is taken off"
    return replace(
        change,
        ratio=interval.ratio,
        low=interval.low,
        high=interval.high,
        floor=floor,
        verdict=judge_change(interval, floor, allowed),
        note=note,
    )


def _half_width(row: Row) -> float:
    """Of the interval of the logarithm; from the quantiles of the times where a row has no ratio."""
    if row.ratio_low and row.ratio_high:
        return math.log(row.ratio_high / row.ratio_low) / 2
    times = [one for one in (row.time, row.baseline_time) if one is not None]
    if any(one.p10 <= 0 for one in times):
        return math.inf  # too short for the clock: nothing can be told
    # The 10 % and 90 % quantiles of a normal distribution are 2.56 deviations apart; a median's own deviation is 1.25
    # over the root of the number, and 95 % lie within 1.96 of those.
    return math.hypot(
        *(math.log(one.p90 / one.p10) / 2.56 * 1.25 * 1.96 / math.sqrt(max(one.count, 1)) for one in times)
    )


def _from_sides(case: CaseName, found: Comparison | str, allowed: float) -> Change:
    change = replace(_named(case), allowed=allowed)
    if isinstance(found, str):
        return replace(change, status="failed", note=found)
    interval = Interval(1 / found.ratio, 1 / found.ci_high, 1 / found.ci_low)
    return replace(
        change,
        old=found.b,
        new=found.a,
        ratio=interval.ratio,
        low=interval.low,
        high=interval.high,
        floor=found.noise_floor,
        verdict=judge_change(interval, found.noise_floor, allowed),
    )


def _one_sided(
    old: Sequence[CaseName], new: Sequence[CaseName]
) -> Iterator[tuple[CaseName, Literal["gone", "new"]]]:
    for case in dict.fromkeys((*old, *new)):
        if case not in new:
            yield case, "gone"
        elif case not in old:
            yield case, "new"


def _named(case: CaseName, *, status: Literal["", "gone", "new", "failed"] = "", note: str = "") -> Change:
    suite, op, shape, dtype = case
    return Change(suite=suite, op=op, shape=shape, dtype=dtype, status=status, note=note)


__all__ = [
    "FAILURES",
    "Change",
    "Failure",
    "WorkerError",
    "confirm",
    "differing_fields",
    "measure_changes",
    "record_changes",
]
