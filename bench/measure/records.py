"""What a benchmark run leaves behind: one JSON file of rows and the machine that they belong to."""

import datetime as dt
import os
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from jepa_fast.bench.measure.ceilings import Ceilings
from jepa_fast.bench.measure.compare import Comparison, Times
from jepa_fast.bench.measure.machine import Machine, kernels_hash
from jepa_fast.bench.measure.statistics import Verdict
from jepa_fast.bench.measure.telemetry import Telemetry

SCHEMA_VERSION = 2


class Row(msgspec.Struct, kw_only=True):
    """One implementation against one baseline on one case. What could not run has a reason and no figure."""

    suite: str
    op: str
    shape: str
    dtype: str
    device: str
    implementation: str = ""
    baseline: str = ""
    peer: str = ""
    """The baseline's name in `--against`."""
    reason: str = ""

    time: Times | None = None
    """Seconds of our call."""
    time_again: Times | None = None
    """The same from a second series of calls in the same rounds: from these two comes the noise floor."""
    baseline_time: Times | None = None
    ratio: float | None = None
    """Times faster than the baseline: median over the rounds of baseline time over our time."""
    ratio_low: float | None = None
    ratio_high: float | None = None
    noise_floor: float | None = None
    """Ratios nearer to 1 than this one occur between our call and itself."""
    verdict: Verdict | None = None
    timer: Literal["", "wall", "events", "graph", "process"] = ""
    """wall: the clock. events: CUDA events round eager calls. graph: CUDA events round replays of a graph of calls, on
    inputs that rotate past the cache. process: by processes of their own."""
    host_time: Times | None = None
    """On CUDA: wall seconds that the host takes to issue one call eagerly, not waited for."""
    host_overhead_us: float | None = None
    """Only in rows of the host's cost: our call less its raw launch, microseconds."""

    peak_bytes: int | None = None
    """Peak memory of one call beyond what was held before it."""
    baseline_peak_bytes: int | None = None
    saved_bytes: int | None = None
    """Most bytes that autograd keeps at once for the backward pass, without what was there before the call."""
    baseline_saved_bytes: int | None = None

    bytes: int | None = None
    """What one call has to read and write."""
    flops: int | None = None
    """Multiplications and additions of one call."""
    copy_share: float | None = None
    """`bytes` over our time, as a share of what a plain copy moves on this machine."""
    matmul_share: float | None = None
    """`flops` over our time, as a share of what a large matrix product in this dtype reaches on this machine."""
    telemetry: Telemetry | None = None
    """The GPU's clocks, power and temperature while this row was timed."""

    error: float | None = None
    """Largest error against the float64 oracle, relative to the oracle's largest value."""
    eager_error: float | None = None
    error_ratio: float | None = None

    def with_times(self, found: Comparison) -> "Row":
        """This row with what `compare` found."""
        return replace(
            self,
            time=found.a,
            time_again=found.again,
            baseline_time=found.b,
            ratio=found.ratio,
            ratio_low=found.ci_low,
            ratio_high=found.ci_high,
            noise_floor=found.noise_floor,
            verdict=found.verdict,
        )

    def with_shares(self, ceilings: Ceilings) -> "Row":
        """This row with its shares of the machine's ceilings, as far as bytes and flops are known."""
        if self.time is None:
            return self
        copy, matmul = ceilings.copy_gbs, ceilings.matmul_of(self.dtype)
        seconds = self.time.median
        return replace(
            self,
            copy_share=self.bytes / seconds / (copy * 1e9) if self.bytes and copy else None,
            matmul_share=self.flops / seconds / (matmul * 1e12) if self.flops and matmul else None,
        )


class Record(msgspec.Struct, kw_only=True):
    """The rows of one run. A reader refuses a schema version above its own; fields that an older one lacks stay empty.

    Version 2 added time_again, peer, timer, host_time, saved bytes, bytes, flops, shares, telemetry, ceilings, missing.
    """

    schema_version: int = SCHEMA_VERSION
    created: dt.datetime
    command: str
    machine: Machine
    load_average: float | None
    """Programs that ran in the minute before, on average; None where the system does not tell."""
    rows: list[Row]
    ceilings: Ceilings | None = None
    """What a copy and a matrix product reach on this machine, measured in the same run."""
    missing: list[str] = []
    """Peers and suites that could not run, each with its reason."""
    complete: bool = True
    """False where the run was stopped before its last case."""

    @property
    def file_name(self) -> str:
        return f"{self.machine.short_name}-{self.created:%Y-%m-%d-%H%M%S}.json"

    @property
    def stale(self) -> bool:
        """Whether it is of other kernel sources than those of this tree."""
        return self.machine.kernels_hash != kernels_hash()


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
