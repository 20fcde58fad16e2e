"""The columns of a results table: what each is called, what it means, and what it shows for a row."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jepa_fast.bench.measure import Row, Times


@dataclass(frozen=True)
class Column:
    """heading: in the table. meaning: one sentence for the reader. cell: the text for a row, may be empty.

    numeric: aligned to the right. judged: coloured by the row's verdict.
    """

    heading: str
    meaning: str
    cell: Callable[[Row], str]
    numeric: bool = True
    judged: bool = False


# What stands below what, so that a row has two lines: ours above, the baseline's below.
_BELOW = {
    "op": "shape",
    "dtype": "runs as",
    "time": "its time",
    "memory": "its memory",
    "verdict": "noise floor",
    "kept": "its kept",
    "of copy": "of matmul",
}


def stacked(columns: Sequence[Column]) -> list[list[Column]]:
    """The columns in the stacks of one or two that a table shows."""
    by_heading = {column.heading: column for column in columns}
    second = set(_BELOW.values())
    return [
        [column, *(by_heading[name] for name in [_BELOW.get(column.heading)] if name in by_heading)]
        for column in columns
        if column.heading not in second
    ]


def duration(seconds: float) -> str:
    """Three digits and the unit that fits: 12.3 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{three_digits(seconds / size)} {unit}"
    return f"{three_digits(seconds / 1e-6)} us"


def memory(size: int) -> str:
    """Mebibytes, or a plain 0."""
    return f"{three_digits(size / 2**20)} MiB" if size else "0"


def three_digits(value: float) -> str:
    """Three significant digits, without an exponent from 0.001 on."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}" if decimals <= 5 else f"{value:.0e}"


def _time(times: Times | None) -> str:
    return duration(times.median) if times else ""


def _memory(size: int | None) -> str:
    return "" if size is None else memory(size)


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _ratio(row: Row) -> str:
    if row.ratio is None or row.ratio_low is None or row.ratio_high is None:
        return ""
    return f"{row.ratio:.2f}x\n[{row.ratio_low:.2f}, {row.ratio_high:.2f}]"


def _verdict(row: Row) -> str:
    return "not timed" if row.reason else row.verdict or ""


def reasons(rows: Sequence[Row]) -> list[str]:
    """One line for every row that was not timed."""
    return [f"{row.op}, {row.shape}, {row.dtype}: {row.reason}" for row in rows if row.reason]


COLUMNS = (
    Column("op", "What is timed.", lambda row: row.op, numeric=False),
    Column("shape", "Sizes of the inputs.", lambda row: row.shape, numeric=False),
    Column("dtype", "Number format the work is done in.", lambda row: row.dtype, numeric=False),
    Column(
        "runs as", "The implementation that served the call.", lambda row: row.implementation, numeric=False
    ),
    Column("time", "Median time of one call.", lambda row: _time(row.time)),
    Column("against", "The baseline on the same tensors.", lambda row: row.baseline, numeric=False),
    Column("its time", "Median time of one call of the baseline.", lambda row: _time(row.baseline_time)),
    Column(
        "times faster",
        "The baseline's time divided by ours, median over rounds that run both on the same inputs, with "
        "its 95 % confidence interval (bootstrap).",
        _ratio,
        judged=True,
    ),
    Column(
        "verdict",
        "Faster or slower only if the whole interval lies beyond the noise floor; same if the ratio surely "
        "lies within 3 % of 1; otherwise this machine cannot tell.",
        _verdict,
        numeric=False,
        judged=True,
    ),
    Column(
        "noise floor",
        "How much faster or slower a call appears against itself in the same run.",
        lambda row: "" if row.noise_floor is None else f"{row.noise_floor - 1:.1%}",
        numeric=False,
    ),
    Column(
        "memory",
        "Most memory that one call holds beyond what was there before it.",
        lambda row: _memory(row.peak_bytes),
    ),
    Column("its memory", "The same for the baseline.", lambda row: _memory(row.baseline_peak_bytes)),
    Column(
        "kept",
        "Most memory that autograd keeps for the backward pass, without what was there before the call.",
        lambda row: _memory(row.saved_bytes),
    ),
    Column("its kept", "The same for the baseline.", lambda row: _memory(row.baseline_saved_bytes)),
    Column(
        "of copy",
        "Bytes that the call has to move over its time, as a share of what a plain copy moves on this machine; above "
        "100 % where the data stay in a cache.",
        lambda row: _share(row.copy_share),
    ),
    Column(
        "of matmul",
        "Operations of the call's products over its time, as a share of what a large matrix product reaches here.",
        lambda row: _share(row.matmul_share),
    ),
    Column(
        "error ratio",
        "Our largest error over that of eager PyTorch in the same number format, both against a float64 "
        "result. A case is timed only if our error is at most twice eager's plus a few last-place units.",
        lambda row: "" if row.error_ratio is None else f"{row.error_ratio:.2f}",
    ),
)

COLD_COLUMNS = (
    *COLUMNS[:2],
    Column("cold", "Median time in processes that were started for it.", lambda row: _time(row.time)),
    Column("against", "What it is held against.", lambda row: row.baseline, numeric=False),
    Column("that takes", "Median time of that, in the same processes.", lambda row: _time(row.baseline_time)),
)

HOST_COLUMNS = (
    *COLUMNS[:4],
    Column("call", "Median time of the public call on tiny inputs.", lambda row: _time(row.time)),
    Column(
        "raw launch",
        "The same kernel, launched on prepared arguments.",
        lambda row: _time(row.baseline_time),
    ),
    Column(
        "overhead",
        "What the public call adds on the host: checks, choice of implementation, autograd.",
        lambda row: "" if row.host_overhead_us is None else f"{row.host_overhead_us:.1f} us",
    ),
)
