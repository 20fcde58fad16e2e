import datetime as dt
from collections.abc import Callable

import pytest

from jepa_fast.bench.measure import Machine, Record, Row, Times

MACHINE = Machine(
    cpu="Some CPU",
    instruction_sets=["avx2"],
    cores=2,
    threads=2,
    memory_gib=8.0,
    gpu=None,
    gpu_driver=None,
    system="Linux x86_64",
    python="3.11.7",
    torch="2.13.0",
    triton=None,
    jepa_fast="0.1.0",
    git_commit="0123456789abcdef0123456789abcdef01234567",
    git_dirty=False,
    kernels_hash="0123456789abcdef",
)


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """A measured row; ours and theirs are its medians in seconds."""

    def make(ours: float = 0.02, theirs: float = 0.05, **changes: object) -> Row:
        ratio = theirs / ours
        values = {
            "suite": "ema",
            "op": "ema_update_",
            "shape": "ViT-B/16 encoder",
            "dtype": "float32",
            "device": "cpu",
            "implementation": "native",
            "baseline": "I-JEPA loop",
            "time": Times(ours, 0.98 * ours, 1.05 * ours, 40),
            "time_again": Times(ours, 0.98 * ours, 1.05 * ours, 40),
            "baseline_time": Times(theirs, 0.98 * theirs, 1.05 * theirs, 40),
            "ratio": ratio,
            "ratio_low": 0.99 * ratio,
            "ratio_high": 1.01 * ratio,
            "noise_floor": 1.012,
            "verdict": "faster",
            "peak_bytes": 0,
            "baseline_peak_bytes": 2**20,
            "error_ratio": 0.97,
        }
        return Row(**{**values, **changes})

    return make


@pytest.fixture
def make_record() -> Callable[..., Record]:
    def make(*rows: Row, machine: Machine = MACHINE, **changes: object) -> Record:
        values = {
            "created": dt.datetime(2026, 11, 20, 12, 30, tzinfo=dt.UTC),
            "command": "jepa-fast bench ema",
            "machine": machine,
            "load_average": 0.2,
            "rows": list(rows),
        }
        return Record(**{**values, **changes})

    return make
