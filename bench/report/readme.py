"""Writes the README's tables of figures from the complete records in bench/results/: of every suite the newest on each
machine.

    python -m jepa_fast.bench.report.readme README.md

replaces what stands between the two markers. A record whose hash is not that of the kernels in the tree is marked.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from jepa_fast.bench.measure import Record, Row, load_record
from jepa_fast.bench.measure.machine import kernels_hash
from jepa_fast.bench.report.columns import duration, memory

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
RESULTS = Path("bench/results")
HEADINGS = ("op", "shape", "dtype", "ours", "against", "theirs", "times faster [95 %]", "extra memory")


def main(readme: Path, results: Path = RESULTS) -> None:
    """Rewrite the figures in `readme`.

    Raises ValueError if the markers are not there, or a file in `results` is no record.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme}: expected the markers {BEGIN} and {END}")
    records = {path: load_record(path) for path in results.glob("*.json") if path.name != "codegen.json"}
    complete = {path: record for path, record in records.items() if record.complete}
    tables = [section(path, record) for path, record in newest(complete).items()]
    readme.write_text(before + "\n\n".join([begin, *tables, end]) + after)


def newest(records: Mapping[Path, Record]) -> dict[Path, Record]:
    """The records in order of machine and time, each with the suites alone that no later one has run again."""
    kept: dict[Path, Record] = {}
    seen: set[tuple[str, str]] = set()
    for path, record in sorted(records.items(), key=lambda item: item[1].created, reverse=True):
        name = record.machine.short_name
        rows = [row for row in record.rows if row.ratio is not None and (name, row.suite) not in seen]
        if rows:
            kept[path] = replace(record, rows=rows)
        seen |= {(name, row.suite) for row in record.rows}
    return dict(sorted(kept.items(), key=lambda item: (item[1].machine.short_name, item[1].created)))


def section(path: Path, record: Record) -> str:
    """One record as a heading and a Markdown table."""
    machine = record.machine
    stale = "" if machine.kernels_hash == kernels_hash() else " **Stale: the kernels have changed since.**"
    title = (
        f"`{record.command}` on {machine.cpu}, {machine.threads} threads, torch {machine.torch}, "
        f"{record.created:%Y-%m-%d} ([record]({path.as_posix()})).{stale}"
    )
    rows = [line(row) for row in record.rows]
    return "\n".join([title, "", cells(HEADINGS), cells(["---"] * len(HEADINGS)), *rows])


def line(row: Row) -> str:
    """A measured row of the table."""
    ours = duration(row.time.median) if row.time else ""
    theirs = duration(row.baseline_time.median) if row.baseline_time else ""
    extra = ""
    if row.peak_bytes is not None and row.baseline_peak_bytes is not None:
        extra = f"{memory(row.peak_bytes)} / {memory(row.baseline_peak_bytes)}"
    ratio = f"{row.ratio:.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]"
    return cells([f"`{row.op}`", row.shape, row.dtype, ours, row.baseline, theirs, ratio, extra])


def cells(texts: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(texts)} |"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "README.md"))
