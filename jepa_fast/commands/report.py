"""`jepa-fast report`: all records as one page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jepa_fast.commands.errors import UsageError
from jepa_fast.commands.outputs import check_file


@dataclass(frozen=True)
class Report:
    """Write one HTML page about all records: speed, memory, roofline, history, and commands.

    The page is a single file that loads nothing. Exit code: 0, or 2 for bad usage.
    """

    records: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[RECORD ...]", help_behavior_hint="(default: those in --results)"),
    ] = ()
    """Records to show, also those of a stopped run, which are marked."""
    results: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("bench/results")
    """Folder of the records."""
    output: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("report.html")
    """The page."""


def run(config: Report) -> int:
    """0. Raises UsageError, ValueError or OSError for bad input."""
    try:
        from jepa_fast.bench.measure import load_record
        from jepa_fast.bench.report.readme import record_paths
        from jepa_fast.bench.report.records_page import records_page
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; `pip install 'jepa-fast[bench]'` brings it"
        ) from None
    if not config.records and not config.results.is_dir():
        raise UsageError(f"--results: {config.results} is not a folder")
    check_file("--output", config.output)
    paths = config.records or record_paths(config.results)
    records = {path: load_record(path) for path in paths}
    config.output.write_text(records_page(records, with_stopped=bool(config.records)), encoding="utf-8")
    print(f"report: {config.output}")
    return 0
