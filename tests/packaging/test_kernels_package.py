"""PyPI's unrelated package `kernels` imports from the repository root: our folder never hides it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_kernels_is_the_installed_package() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import kernels; print(kernels.__file__); print(kernels.get_kernel.__name__)"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    path, function = done.stdout.splitlines()
    assert "site-packages" in Path(path).parts
    assert function == "get_kernel"
