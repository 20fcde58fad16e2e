"""Records in the forms of other tools: pytest-benchmark, github-action-benchmark, and PyTorch's benchmark database."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jepa_fast.bench.measure import Record, Row, Times

# Of the JSON that pytest-benchmark 4 and 5 write and compare; https://pytest-benchmark.readthedocs.io
PYTEST_BENCHMARK_VERSION = "5.0.0"
# The 10 % and the 90 % quantile of a normal distribution are 2.563 standard deviations apart, its quartiles 1.349.
DEVIATIONS_P10_P90, DEVIATIONS_QUARTILES = 2.563, 1.349


def write_export(record: Record, form: str, path: Path) -> None:
    """Raises OSError if the file cannot be written."""
    path.write_text(json.dumps(FORMS[form](record), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def pytest_benchmark(record: Record) -> dict[str, Any]:
    """What `pytest-benchmark compare` and `--benchmark-compare` read. Times in seconds, ours and each baseline's."""
    machine = record.machine
    return {
        "machine_info": {
            "node": machine.short_name,
            "processor": machine.cpu,
            "machine": machine.system.split()[-1],
            "system": machine.system.split()[0],
            "python_version": machine.python,
            "python_implementation": "CPython",
            "cpu": {"brand_raw": machine.cpu, "count": machine.cores},
            "gpu": machine.gpu,
            "torch": machine.torch,
        },
        "commit_info": {
            "id": machine.git_commit or "unversioned",
            "time": record.created.isoformat(),
            "author_time": None,
            "dirty": bool(machine.git_dirty),
            "project": "jepa_fast",
            "branch": "(unknown)",
        },
        "benchmarks": [
            {
                "group": f"{row.suite}: {row.shape}, {row.dtype}",
                "name": f"{row.op}[{who}]",
                "fullname": f"{row.suite}::{row.op}[{row.shape}, {row.dtype}, {who}]",
                "params": {"shape": row.shape, "dtype": row.dtype, "device": row.device, "runs": who},
                "param": f"{row.shape}, {row.dtype}, {who}",
                "extra_info": {"timer": row.timer, "error_ratio": row.error_ratio},
                "options": {
                    "disable_gc": True,
                    "timer": row.timer or "wall",
                    "min_rounds": times.count,
                    "max_time": 0.0,
                    "min_time": 0.0,
                    "warmup": True,
                },
                "stats": _stats(times),
            }
            for row, who, times in _series(record)
        ],
        "datetime": record.created.isoformat(),
        "version": PYTEST_BENCHMARK_VERSION,
    }


def _stats(times: Times) -> dict[str, Any]:
    """The fields that its tables show, from the quantiles that a record keeps; rounds themselves are not kept."""
    deviation = (times.p90 - times.p10) / DEVIATIONS_P10_P90
    half = DEVIATIONS_QUARTILES * deviation / 2
    return {
        "min": times.p10,
        "max": times.p90,
        "mean": times.median,
        "median": times.median,
        "stddev": deviation,
        "rounds": times.count,
        "iterations": 1,
        "q1": times.median - half,
        "q3": times.median + half,
        "iqr": 2 * half,
        "iqr_outliers": 0,
        "stddev_outliers": 0,
        "outliers": "0;0",
        "ld15iqr": times.p10,
        "hd15iqr": times.p90,
        "ops": 1 / times.median if times.median else 0.0,
        "total": times.median * times.count,
        "data": [times.p10, times.median, times.p90],
    }


def github_action_benchmark(record: Record) -> list[dict[str, Any]]:
    """For the action's tool `customSmallerIsBetter`: our time of each case in microseconds, and its peak memory."""
    entries: dict[str, dict[str, Any]] = {}
    for row in record.rows:
        if row.time is None or row.reason:
            continue
        name = f"{row.op}, {row.shape}, {row.dtype}"
        extra = f"{row.implementation} on {row.device}, {row.time.count} rounds"
        if row.ratio is not None:
            extra += f"\n{row.ratio:.2f} times faster than {row.baseline}"
        entries.setdefault(name, _entry(name, "us", 1e6 * row.time.median, extra, row.time))
        if row.peak_bytes:
            title = f"{name}, peak memory"
            entries.setdefault(title, _entry(title, "MiB", row.peak_bytes / 2**20, extra))
    return list(entries.values())


def _entry(name: str, unit: str, value: float, extra: str, times: Times | None = None) -> dict[str, Any]:
    entry = {"name": name, "unit": unit, "value": value, "extra": extra}
    if times is not None:
        entry["range"] = f"± {1e6 * (times.p90 - times.p10) / 2:.3g}"
    return entry


def test_infra_v3(record: Record) -> list[dict[str, Any]]:
    """One entry per metric and row in version 3 of the schema of https://github.com/pytorch/test-infra."""
    machine = record.machine
    shared = {
        "schema_version": "v3",
        "timestamp": int(record.created.timestamp()),
        "repo": "jepa_fast",
        "head_branch": "",
        "head_sha": machine.git_commit or "",
        "workflow_id": 0,
        "run_attempt": 0,
        "job_id": 0,
        "runners": [
            {
                "name": machine.short_name,
                "type": machine.gpu or machine.cpu,
                "cpu_info": machine.cpu,
                "cpu_count": machine.cores,
                "mem_info": "",
                "avail_mem_in_gb": int(machine.memory_gib),
                "gpu_info": machine.gpu or "",
                "gpu_count": 1 if machine.gpu else 0,
                "gpu_mem_info": "",
                "avail_gpu_mem_in_gb": int(machine.gpu_memory_gib or 0),
                "extra_info": {"driver": machine.gpu_driver or "", "python": machine.python},
            }
        ],
        "dependencies": {
            name: {
                "repo": repository,
                "branch": "",
                "sha": "",
                "version": version or "",
                "extra_info": {},
            }
            for name, repository, version in (
                ("torch", "pytorch/pytorch", machine.torch),
                ("triton", "triton-lang/triton", machine.triton),
            )
        },
    }
    entries = []
    for row, who, metric, value, words in _metrics(record):
        entries.append(
            {
                **shared,
                "name": "jepa_fast",
                "benchmark": {
                    "name": f"jepa_fast {row.suite}",
                    "mode": "training",
                    "dtype": row.dtype,
                    "extra_info": {"device": row.device, "timer": row.timer, "command": record.command},
                },
                "model": {
                    "name": f"{row.op}, {row.shape}",
                    "type": "op",
                    "backend": who,
                    "origins": [],
                    "extra_info": {"against": row.baseline} if metric == "speedup" else {},
                },
                "inputs": {"shape": {"dtype": row.dtype, "extra_info": {"shape": row.shape}}},
                "metric": {
                    "name": metric,
                    "benchmark_values": [value],
                    "target_value": 0.0,
                    "extra_info": words,
                },
            }
        )
    return entries


def _metrics(record: Record) -> Iterator[tuple[Row, str, str, float, dict[str, str]]]:
    """Row, whose, name, value and words: times and memory once for each series, a speed-up for every baseline."""
    for row, who, times in _series(record):
        spread = {"p10": f"{1e3 * times.p10:.6g}", "p90": f"{1e3 * times.p90:.6g}"}
        yield row, who, "latency", 1e3 * times.median, {"unit": "ms", **spread}
        if who == _ours(row) and row.peak_bytes is not None:
            yield row, who, "peak_memory", row.peak_bytes / 2**20, {"unit": "MiB"}
    for row in record.rows:
        if row.ratio is not None and not row.reason:
            yield row, _ours(row), "speedup", row.ratio, {"unit": "times", "verdict": row.verdict or ""}


def _series(record: Record) -> Iterator[tuple[Row, str, Times]]:
    """Every measured series once: ours by the first row of a case, and each baseline."""
    seen = set()
    for row in record.rows:
        if row.reason:
            continue
        for who, times in ((_ours(row), row.time), (row.baseline, row.baseline_time)):
            key = (row.suite, row.op, row.shape, row.dtype, who)
            if times is not None and key not in seen:
                seen.add(key)
                yield row, who, times


def _ours(row: Row) -> str:
    return f"jepa_fast {row.implementation}".strip()


FORMS: dict[str, Callable[[Record], Any]] = {
    "pytest-benchmark": pytest_benchmark,
    "github-action-benchmark": github_action_benchmark,
    "test-infra-v3": test_infra_v3,
}
