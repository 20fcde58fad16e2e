"""Result tables for the terminal."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jepa_fast.bench.measure import Row
from jepa_fast.bench.report.columns import COLUMNS, HOST_COLUMNS, Column, reasons, stacked

_STYLES = {"faster": "green", "slower": "red", "cannot tell": "dim"}
_WIDTH = 136  # what the tables need; used where the output is no terminal that has its own


def make_console() -> Console:
    """A console for result tables: as wide as its terminal, or as the tables need in a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def tables(rows: Sequence[Row], width: int) -> Iterator[Table | Text]:
    """For a console of `width`: comparisons, host costs, and why rows were not timed; each only if there are any."""
    roomy = width >= _WIDTH
    host = [row for row in rows if row.host_overhead_us is not None]
    compared = [row for row in rows if row.host_overhead_us is None]
    if compared:
        yield _table(compared, COLUMNS, "times faster: baseline over ours, with its 95 % interval", roomy)
    if host:
        yield _table(
            host, HOST_COLUMNS, "overhead: what the public call adds to its launch on the host", roomy
        )
    for reason in reasons(rows):
        yield Text(f"not timed: {reason}", style="red")


def _table(rows: Sequence[Row], columns: Sequence[Column], caption: str, roomy: bool) -> Table:
    """roomy: no word is broken, whatever the width that takes."""
    table = Table(box=box.HORIZONTALS, show_lines=True, caption=caption, caption_justify="left")
    stacks = stacked(columns)
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
