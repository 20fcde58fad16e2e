"""`jepa-fast export`: a record in the form of another tool."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jepa_fast.commands.errors import UsageError


@dataclass(frozen=True)
class Export:
    """Write a record in the form of pytest-benchmark, github-action-benchmark or test-infra.

    pytest-benchmark: what `pytest-benchmark compare` reads. github-action-benchmark: for the
    action's tool customSmallerIsBetter. test-infra-v3: PyTorch's benchmark database.
    Exit code: 0, or 2 for bad usage.
    """

    record: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RECORD")]
    """Record that `jepa-fast bench --save` wrote."""
    form: Annotated[
        Literal["pytest-benchmark", "github-action-benchmark", "test-infra-v3"], tyro.conf.Positional
    ]
    """Form to write."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File to write."""


def run(config: Export) -> int:
    """0. Raises ValueError or OSError for bad input."""
    try:
        from jepa_fast.bench.measure import load_record
        from jepa_fast.bench.report.export import write_export
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; `pip install 'jepa-fast[bench]'` brings it"
        ) from None
    write_export(load_record(config.record), config.form, config.output)
    print(f"{config.form}: {config.output}")
    return 0
