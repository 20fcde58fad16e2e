"""Writes the README's tables of figures from the newest record of every machine in bench/results/.

    python -m jepa_fast.bench.report.readme README.md

replaces what stands between the two markers. A record whose hash is not that of the kernels in the tree is marked.
"""

import sys
from pathlib import Path

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
    tables = [
        section(path, load_record(path))
        for path in sorted(results.glob("*.json"))
        if path.name != "codegen.json"
    ]
    readme.write_text(before + "\n\n".join([begin, *tables, end]) + after)


def section(path: Path, record: Record) -> str:
    """One record as a heading and a Markdown table."""
    machine = record.machine
    stale = "" if machine.kernels_hash == kernels_hash() else " **Stale: the kernels have changed since.**"
    title = (
        f"`{record.command}` on {machine.cpu}, {machine.threads} threads, torch {machine.torch}, "
        f"{record.created:%Y-%m-%d} ([record]({path.as_posix()})).{stale}"
    )
    rows = [line(row) for row in record.rows if row.ratio is not None]
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
