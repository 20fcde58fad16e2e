"""Pack the project and what its GPU tests and benches need for an offline CUDA host (CPython 3.12, Linux x86_64).

The host has torch and triton already. What draws figures, decodes video, lints or types stays out, and so do other code
bases, whose tests on the CPU are as good: the pack has to travel.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {
    *("torch", "triton", "jepa-fast"),
    *("av", "pillow", "scikit-video", "webdataset", "matplotlib", "tensorboard", "transformers"),
    *("build", "cmake", "ninja", "scikit-build-core", "kernels", "mypy", "ruff"),
}
TARGET = [
    "--python-version=3.12",
    "--implementation=cp",
    "--abi=cp312",
    "--abi=abi3",
    "--abi=none",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
    "--only-binary=:all:",
]


def main(folder: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    wanted = [
        r.partition(";")[0]
        for r in requirements
        if re.split(r"[^A-Za-z0-9-]", r, maxsplit=1)[0] not in LEFT_OUT
    ]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    subprocess.run(
        [*pip, "download", "-q", "-d", folder, "-c", ROOT / "constraints.txt", *TARGET, *wanted], check=True
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {len(list(folder.iterdir()))} wheels, {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
