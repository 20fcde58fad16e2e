"""Writes the README's tables of figures from the complete records in bench/results/: of every suite the newest on each
machine.

    python -m jepa_fast.bench.report.readme [--check] README.md

replaces what stands between the two markers. Records of the kernels in the tree come first; the tables of others are
marked and folded.
"""

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from jepa_fast.bench.measure import Record, Row, load_record
from jepa_fast.bench.report.columns import duration, memory

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
RESULTS = Path("bench/results")
NO_RECORD = "codegen.json"  # the code-generation gate's, in the same folder
MOST_ROWS = 14  # of each suite: all systems, in both types
HEADINGS = ("op", "shape", "dtype", "ours", "against", "theirs", "times faster [95 %]", "extra memory")


def update(readme: Path, results: Path = RESULTS, *, check: bool = False) -> bool:
    """Rewrite the figures in `readme`, or, with `check`, print what would change; whether it was as the records say.

    Raises ValueError if the markers are not there, a file in `results` is no record, or none has a figure.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme}: expected the markers {BEGIN} and {END}")
    records = {path: load_record(path) for path in record_paths(results)}
    complete = {path: record for path, record in records.items() if record.complete}
    shown = sorted(newest(complete).items(), key=lambda item: item[1].stale)
    tables = [section(path, record) for path, record in shown]
    if not tables:  # a mistyped folder must not cost the page its figures
        raise ValueError(f"--results: expected a folder with a complete record of figures, got {results}")
    found = before + "\n\n".join([begin, *tables, end]) + after
    if not check:
        readme.write_text(found)
        return True
    for line in difflib.unified_diff(
        text.splitlines(), found.splitlines(), "README", "records", lineterm="", n=0
    ):
        print(line, file=sys.stderr)
    return found == text


def record_paths(results: Path) -> list[Path]:
    """The records in a folder, by name."""
    return sorted(path for path in results.glob("*.json") if path.name != NO_RECORD)


def newest(records: Mapping[Path, Record], *, with_all: bool = False) -> dict[Path, Record]:
    """The records in order of machine and time, each with the suites alone that no later one has run again
    on the same device.

    with_all: also the rows that are no comparison, or could not be timed.
    """
    kept: dict[Path, Record] = {}
    seen: set[tuple[str, str, str]] = set()
    for path, record in sorted(records.items(), key=lambda item: item[1].created, reverse=True):
        name = record.machine.short_name
        rows = [
            row
            for row in record.rows
            if (with_all or row.ratio is not None) and (name, row.suite, row.device) not in seen
        ]
        if rows:
            kept[path] = replace(record, rows=rows)
        seen |= {
            (name, row.suite, row.device)
            for row in record.rows
            if row.ratio is not None or row.time is not None
        }
    return dict(sorted(kept.items(), key=lambda item: (item[1].machine.short_name, item[1].created)))


def section(path: Path, record: Record) -> str:
    """One record as a heading and a Markdown table."""
    machine = record.machine
    on_gpu = machine.gpu and any(row.device.startswith("cuda") for row in record.rows)
    place = machine.gpu if on_gpu else f"{machine.processor}, {machine.threads} threads"
    title = (
        f"`{record.command}` on {place}, torch {machine.torch}, "
        f"{record.created:%Y-%m-%d} ([record]({path.as_posix()}))."
    )
    rows = [line(row) for row in _chosen(record.rows)]
    table = "\n".join([cells(HEADINGS), cells(["---"] * len(HEADINGS)), *rows])
    if record.stale:
        title += " **Stale: the kernels have changed since.**"
        table = f"<details><summary>its figures</summary>\n\n{table}\n\n</details>"
    return f"{title}\n\n{table}"


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """Of each suite a few rows: the first of every op, then the others; `jepa-fast report` shows all."""
    kept: dict[str, list[Row]] = {}
    for row in rows:
        kept.setdefault(row.suite, []).append(row)
    chosen = []
    for own in kept.values():
        ops = [row.op for row in own]
        by_rank = sorted(range(len(own)), key=lambda i: ops.index(ops[i]) != i)
        chosen += [own[i] for i in sorted(by_rank[:MOST_ROWS])]
    return chosen


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


def main(arguments: list[str] | None = None) -> int:
    """1 if the page was to be checked and is not as the records say, 2 for bad input."""
    parser = argparse.ArgumentParser(description="The README's figures from the records in bench/results/.")
    parser.add_argument("readme", nargs="?", type=Path, default=Path("README.md"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit code 1 if something would change"
    )
    options = parser.parse_args(arguments)
    try:
        good = update(options.readme, options.results, check=options.check)
    except (OSError, ValueError) as error:
        print(f"readme: error: {error}", file=sys.stderr)
        return 2
    if not good:
        print(
            f"{options.readme}: its figures are not those of the records; `make readme` writes them",
            file=sys.stderr,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
