"""The suites through pytest-benchmark: a run of one case, its file, and a comparison that fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")

ROOT = Path(__file__).parents[2]


def regression(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A child that takes itself for one of xdist's workers measures nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                str(ROOT / "bench" / "regression"),
                "-q",
                "-p",
                "no:cacheprovider",
            ),
            *("-p", "no:xdist", f"--benchmark-storage=file://{folder}", *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )


def test_a_run_writes_what_pytest_benchmark_compares(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    case = ("--suites=host_cost", "-k", "ema_update_")
    done = regression(tmp_path, *case, f"--benchmark-json={output}", "--benchmark-save=base")
    assert done.returncode == 0, done.stdout + done.stderr
    (benchmark,) = json.loads(output.read_text())["benchmarks"]
    assert "ema_update_" in benchmark["name"]
    assert benchmark["stats"]["rounds"] >= 5
    assert benchmark["extra_info"]["implementation"]

    saved = next(tmp_path.rglob("*_base.json"))
    faster = json.loads(saved.read_text())
    for entry in faster["benchmarks"]:
        for name in ("min", "max", "mean", "median"):
            entry["stats"][name] /= 100
    saved.write_text(json.dumps(faster))
    done = regression(tmp_path, *case, "--benchmark-compare=0001", "--benchmark-compare-fail=median:50%")
    assert done.returncode != 0
    assert "Performance has regressed" in done.stdout + done.stderr


def test_unknown_suites_are_named_and_the_ordinary_run_collects_none(tmp_path: Path) -> None:
    done = regression(tmp_path, "--suites=emma")
    assert done.returncode != 0
    assert "got emma; did you mean ema?" in done.stdout + done.stderr
    assert (
        "bench" not in (ROOT / "pyproject.toml").read_text().partition("testpaths = ")[2].partition("\n")[0]
    )
