"""Result tables for the terminal."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jepa_fast.bench.measure import Row
from jepa_fast.bench.report.columns import COLD_COLUMNS, COLUMNS, HOST_COLUMNS, Column, reasons, stacked

_STYLES = {"faster": "green", "slower": "red", "cannot tell": "dim"}
_WIDTH = 160  # what the tables need; used where the output is no terminal that has its own


def make_console() -> Console:
    """A console for result tables: as wide as its terminal, or as the tables need in a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def tables(rows: Sequence[Row], width: int) -> Iterator[Table | Text]:
    """For a console of `width`: comparisons, host costs, and why rows were not timed; each only if there are any."""
    roomy = width >= _WIDTH
    host = [row for row in rows if row.host_overhead_us is not None]
    cold = [row for row in rows if row.timer == "process"]
    compared = [row for row in rows if row.host_overhead_us is None and row.timer != "process"]
    if compared:
        yield _table(compared, COLUMNS, "times faster: baseline over ours, with its 95 % interval", roomy)
    if host:
        yield _table(
            host, HOST_COLUMNS, "overhead: what the public call adds to its launch on the host", roomy
        )
    if cold:
        yield _table(cold, COLD_COLUMNS, "cold: what a new process pays, once", roomy)
    for reason in reasons(rows):
        yield Text(f"not timed: {reason}", style="red")


def _table(rows: Sequence[Row], columns: Sequence[Column], caption: str, roomy: bool) -> Table:
    """roomy: no word is broken, whatever the width that takes."""
    table = Table(box=box.HORIZONTALS, show_lines=True, caption=caption, caption_justify="left")
    # What no row has, such as shares where no case declares its bytes, takes no place.
    stacks = [
        stack for stack in stacked(columns) if any(column.cell(row) for column in stack for row in rows)
    ]
    for stack in stacks:
        words = [word for column in stack for row in rows for word in column.cell(row).split()]
        table.add_column(
            "\n".join(column.heading for column in stack),
            justify="right" if stack[0].numeric else "left",
            overflow="fold",
            min_width=max(map(len, words), default=1) if roomy else None,
        )
    for row in rows:
        style = "red" if row.reason else _STYLES.get(row.verdict or "", "")
        table.add_row(*(_cell(stack, row, style) for stack in stacks))
    return table


def _cell(stack: Sequence[Column], row: Row, style: str) -> Text:
    return Text("\n".join(column.cell(row) for column in stack), style=style if stack[0].judged else "")
