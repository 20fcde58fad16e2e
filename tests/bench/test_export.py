"""Records in the forms of other tools, read back by those tools' own code or held against their schema."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jepa_fast.bench.measure import Record, Row, save_record
from jepa_fast.bench.report.export import FORMS, write_export
from jepa_fast.commands.main import main


@pytest.fixture
def record(make_row: Callable[..., Row], make_record: Callable[..., Record]) -> Record:
    return make_record(
        make_row(),
        make_row(theirs=0.03, baseline="_foreach_lerp_"),
        make_row(shape="tiny", reason="no library", time=None, baseline_time=None),
    )


def test_pytest_benchmark_compares_it(record: Record, tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "0001_run.json"
    write_export(record, "pytest-benchmark", path)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest_benchmark",
            "compare",
            str(path),
            "--columns=min,median,stddev,ops,rounds",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for who in ("jepa_fast native", "I-JEPA loop", "_foreach_lerp_"):
        assert f"ema_update_[{who}]" in done.stdout
    (ours, *_) = json.loads(path.read_text())["benchmarks"]
    assert ours["stats"]["median"] == 0.02
    assert len(json.loads(path.read_text())["benchmarks"]) == 3  # ours once, and each baseline


def test_github_action_benchmark_has_its_fields(record: Record) -> None:
    entries = FORMS["github-action-benchmark"](record)
    assert [entry["name"] for entry in entries] == ["ema_update_, ViT-B/16 encoder, float32"]
    for entry in entries:
        assert set(entry) <= {"name", "unit", "value", "range", "extra"}
        assert isinstance(entry["value"], float)
    assert entries[0]["unit"] == "us"
    assert entries[0]["value"] == pytest.approx(20_000)


def test_test_infra_v3_has_its_columns(record: Record) -> None:
    entries = FORMS["test-infra-v3"](record)
    found = [(entry["model"]["backend"], entry["metric"]["name"]) for entry in entries]
    assert found.count(("jepa_fast native", "latency")) == 1
    speedups = [entry for entry in entries if entry["metric"]["name"] == "speedup"]
    assert {
        entry["model"]["extra_info"]["against"]: entry["metric"]["benchmark_values"] for entry in speedups
    } == {"I-JEPA loop": [2.5], "_foreach_lerp_": [1.5]}
    assert ("I-JEPA loop", "latency") in found
    for entry in entries:
        assert entry["schema_version"] == "v3"
        assert len(entry["metric"]["benchmark_values"]) == 1  # a value for each run, and a record is one
        _matches(entry, _COLUMNS)


# Of the table benchmark.oss_ci_benchmark_v3, clickhouse_db_schema/oss_ci_benchmark_v3/schema.sql of pytorch/test-infra,
# but for what its uploader fills in. {str: type} is a map with any keys, [type] an array.
_WORDS = {str: str}
_COLUMNS = {
    "timestamp": int,
    "schema_version": str,
    "name": str,
    "repo": str,
    "head_branch": str,
    "head_sha": str,
    "workflow_id": int,
    "run_attempt": int,
    "job_id": int,
    "runners": [
        {
            "name": str,
            "type": str,
            "cpu_info": str,
            "cpu_count": int,
            "mem_info": str,
            "avail_mem_in_gb": int,
            "gpu_info": str,
            "gpu_count": int,
            "gpu_mem_info": str,
            "avail_gpu_mem_in_gb": int,
            "extra_info": _WORDS,
        }
    ],
    "benchmark": {"name": str, "mode": str, "dtype": str, "extra_info": _WORDS},
    "model": {"name": str, "type": str, "backend": str, "origins": [str], "extra_info": _WORDS},
    "inputs": {str: {"dtype": str, "extra_info": _WORDS}},
    "dependencies": {str: {"repo": str, "branch": str, "sha": str, "version": str, "extra_info": _WORDS}},
    "metric": {"name": str, "benchmark_values": [float], "target_value": float, "extra_info": _WORDS},
}


def _matches(value: Any, column: Any) -> None:
    if isinstance(column, type):
        assert isinstance(value, column)
    elif isinstance(column, list):
        assert isinstance(value, list)
        for item in value:
            _matches(item, column[0])
    elif str in column:
        assert all(isinstance(key, str) for key in value)
        for item in value.values():
            _matches(item, column[str])
    else:
        assert set(value) == set(column)
        for name, kind in column.items():
            _matches(value[name], kind)


@pytest.mark.parametrize("form", FORMS)
def test_the_command_writes_each_form(record: Record, form: str, tmp_path: Path) -> None:
    path = save_record(record, tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["export", str(path), form, str(tmp_path / "out.json")])
    assert not stop.value.code
    assert json.loads((tmp_path / "out.json").read_text())


def test_bad_input_is_one_line(record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_record(record, tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_text("[]")
    for arguments, message in (
        ([str(broken), "test-infra-v3", "out"], "expected a benchmark record"),
        ([str(path), "test-infra-v3", str(tmp_path / "no" / "out")], "No such file"),
        ([str(path), "junit", "out"], "invalid choice"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["export", *arguments])
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert message in error
        assert error.count("\n") == 1
