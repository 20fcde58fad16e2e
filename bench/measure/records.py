"""What a benchmark run leaves behind: one JSON file of rows and the machine that they belong to."""

import datetime as dt
import os
from pathlib import Path

import msgspec
from msgspec.structs import replace

from jepa_fast.bench.measure.compare import Comparison, Times
from jepa_fast.bench.measure.machine import Machine
from jepa_fast.bench.measure.statistics import Verdict

SCHEMA_VERSION = 1


class Row(msgspec.Struct, kw_only=True):
    """One implementation against one baseline on one case. What could not run has a reason and no figure."""

    suite: str
    op: str
    shape: str
    dtype: str
    device: str
    implementation: str = ""
    baseline: str = ""
    reason: str = ""

    time: Times | None = None
    """Seconds of our call."""
    baseline_time: Times | None = None
    ratio: float | None = None
    """Times faster than the baseline: median over the rounds of baseline time over our time."""
    ratio_low: float | None = None
    ratio_high: float | None = None
    noise_floor: float | None = None
    """Ratios nearer to 1 than this one occur between our call and itself."""
    verdict: Verdict | None = None
    host_overhead_us: float | None = None
    """Only in rows of the host's cost: our call less its raw launch, microseconds."""

    peak_bytes: int | None = None
    """Peak memory of one call beyond what was held before it."""
    baseline_peak_bytes: int | None = None

    error: float | None = None
    """Largest error against the float64 oracle, relative to the oracle's largest value."""
    eager_error: float | None = None
    error_ratio: float | None = None

    def with_times(self, found: Comparison) -> "Row":
        """This row with what `compare` found."""
        return replace(
            self,
            time=found.a,
            baseline_time=found.b,
            ratio=found.ratio,
            ratio_low=found.ci_low,
            ratio_high=found.ci_high,
            noise_floor=found.noise_floor,
            verdict=found.verdict,
        )


class Record(msgspec.Struct, kw_only=True):
    """The rows of one run. A reader refuses a schema version above its own."""

    schema_version: int = SCHEMA_VERSION
    created: dt.datetime
    command: str
    machine: Machine
    load_average: float | None
    """Programs that ran in the minute before, on average; None where the system does not tell."""
    rows: list[Row]
    complete: bool = True
    """False where the run was stopped before its last case."""

    @property
    def file_name(self) -> str:
        return f"{self.machine.short_name}-{self.created:%Y-%m-%d-%H%M%S}.json"


class _Version(msgspec.Struct):
    schema_version: int


def save_record(record: Record, folder: Path) -> Path:
    """Write the record as JSON into `folder`, which is made if missing, and return the file's path.

    A record of the same name is replaced in one move, so that it can be saved anew after every case.
    Raises OSError if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / record.file_name
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    os.replace(partial, path)
    return path


def load_record(path: Path) -> Record:
    """Read a record.

    Raises OSError if it cannot be read, and ValueError that names the file if it is no record or a newer one.
    """
    content = path.read_bytes()
    try:
        version = msgspec.json.decode(content, type=_Version).schema_version
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"{path}: expected a record of schema version {SCHEMA_VERSION} or older, got {version}"
            )
        return msgspec.json.decode(content, type=Record)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: expected a benchmark record, got: {error}") from error
