import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("CMakeLists.txt", "LICENSE", "README.md", "bench", "jepa_fast", "kernels", "pyproject.toml")
SCRIPTS = str(Path(sys.executable).parent)  # with the CMake and Ninja of the environment
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
BUILD_LIMIT = 280  # seconds


def _environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "JEPA_FAST_PURE_PYTHON"}
    return {**kept, "PATH": os.pathsep.join((SCRIPTS, os.environ.get("PATH", os.defpath))), **variables}


ENVIRONMENTS = {
    "native": _environment(),
    "asked_pure": _environment(JEPA_FAST_PURE_PYTHON="1"),
    "no_compiler": _environment(CXX="/nonexistent/c++", PATH=SCRIPTS),
}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """One wheel per way to build, or what the build said; side by side, as the compiler takes the longest."""
    builds = {}
    for name, environment in ENVIRONMENTS.items():
        if name == "native" and COMPILER is None:
            continue
        folder = tmp_path_factory.mktemp(name)
        for source in SOURCES:
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.so")
                shutil.copytree(ROOT / source, folder / "src" / source, ignore=ignored)
            else:
                (folder / "src").mkdir(exist_ok=True)
                shutil.copy(ROOT / source, folder / "src")
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            ".",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            "../out",
        ]
        log = (folder / "log").open("w+")
        builds[name] = (
            folder,
            log,
            subprocess.Popen(command, cwd=folder / "src", env=environment, stdout=log, stderr=log),
        )
    built: dict[str, Path | str] = {}
    for name, (folder, log, process) in builds.items():
        try:
            failed = process.wait(BUILD_LIMIT)
        finally:
            process.kill()
        log.seek(0)
        built[name] = log.read() if failed else next((folder / "out").glob("*.whl"))
        log.close()
    return built


@pytest.fixture(scope="session")
def wheel(wheels: dict[str, Path | str]) -> Callable[[str], Path]:
    def built(name: str) -> Path:
        if name not in wheels:
            pytest.skip("no C++ compiler")
        found = wheels[name]
        assert isinstance(found, Path), found
        return found

    return built


@dataclass(frozen=True)
class Installation:
    """A virtual environment with our wheel; what else it needs is this environment's."""

    folder: Path

    def run(self, *command: str) -> str:
        """Standard output of a command of the environment, run outside the checkout."""
        variables = {
            k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JEPA_FAST", "TRITON_"))
        }
        done = subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=self.folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def install(
    wheel: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Installation]:
    def installed(name: str) -> Installation:
        source = wheel(name)
        folder = tmp_path_factory.mktemp(f"{name}_environment")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        python = str(folder / "bin" / "python")
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "--python",
                python,
                "install",
                "--quiet",
                "--no-deps",
                "--no-index",
                source,
            ],
            check=True,
        )
        (packages,) = folder.glob("lib/python*/site-packages")
        # A folder named in a .pth file is searched, but its own .pth files are not read, so the finder of an
        # editable installation of ours stays out.
        (packages / "this_environment.pth").write_text(
            "\n".join(path for path in sys.path if path.endswith("-packages"))
        )
        return Installation(folder)

    return installed
