"""A progress bar for work that turns out to take a while."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SILENT_SECONDS = 2.0  # quicker work shows nothing
LINE_SECONDS = 10.0  # between two lines where there is no terminal to draw a bar on


@contextmanager
def slow_progress(
    description: str, total: int, *, console: Console | None = None
) -> Iterator[Callable[[], None]]:
    """Gives a function to call after each of `total` pieces of work.

    From two seconds on it draws a bar on standard error, or, where that is no terminal, prints a
    plain line every ten seconds.
    """
    console = console or Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task(description, total=total)
    done = 0
    drawn = False
    next_output = time.monotonic() + SILENT_SECONDS

    def advance() -> None:
        nonlocal done, drawn, next_output
        done += 1
        bar.update(task, completed=done)
        now = time.monotonic()
        if now < next_output:
            return
        if console.is_terminal:
            bar.start()
            drawn = True
            next_output = float("inf")  # from here on the bar refreshes itself
        else:
            console.print(f"{description}: {done} of {total}", highlight=False)
            next_output = now + LINE_SECONDS

    try:
        yield advance
    finally:
        if drawn:
            bar.stop()
