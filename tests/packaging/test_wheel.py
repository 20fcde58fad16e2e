"""What is in the wheels, and that they work outside the checkout."""

import platform
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOM = "jepa_fast/kernels/runtime"
X86_64 = [f"{ROOM}/libjepa_fast_cpu_avx2.so", f"{ROOM}/libjepa_fast_cpu_avx512.so"]
LIBRARIES = [f"{ROOM}/libjepa_fast_cpu.so", *(X86_64 if platform.machine() == "x86_64" else [])]
WAYS = ("native", "asked_pure", "no_compiler")
PURE = WAYS[1:]


@pytest.mark.parametrize("way", WAYS)
def test_contents(wheel: Callable[[str], Path], way: str) -> None:
    with zipfile.ZipFile(wheel(way)) as archive:
        names = archive.namelist()
        (information,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        assert {name.split("/")[0] for name in names} == {"jepa_fast", information}
        assert re.fullmatch(r"jepa_fast-[0-9.]+\.dist-info", information)
        entry_points = archive.read(f"{information}/entry_points.txt").decode()
        metadata = archive.read(f"{information}/METADATA").decode()
    assert "jepa-fast = jepa_fast.commands.main:main" in entry_points
    assert "Requires-Python: >=3.11" in metadata
    assert not [name for name in names if name.endswith((".cpp", ".h", ".cu", ".pyc"))]
    for needed in (
        "kernels/ema/triton_ema.py",
        "bench/baselines/ema.py",
        "models/ijepa.py",
        "commands/main.py",
    ):
        assert f"jepa_fast/{needed}" in names
    assert "jepa_fast/kernels/__init__.py" not in names
    assert any(name.startswith("jepa_fast/bench/report/") and name.endswith(".j2") for name in names)
    assert f"{information}/licenses/LICENSE" in names
    libraries = [name for name in names if name.endswith(".so")]
    assert sorted(libraries) == (sorted(LIBRARIES) if way == "native" else [])


def test_native_wheel_serves_every_python(wheel: Callable[[str], Path]) -> None:
    assert re.fullmatch(r"jepa_fast-[0-9.]+-py3-none-(?!any)\w+\.whl", wheel("native").name)


@pytest.mark.parametrize("way", PURE)
def test_pure_wheel_serves_every_platform(wheel: Callable[[str], Path], way: str) -> None:
    assert wheel(way).name.endswith("-py3-none-any.whl")


@pytest.mark.parametrize("library_name", LIBRARIES)
def test_library_knows_neither_torch_nor_python(wheel: Callable[[str], Path], library_name: str) -> None:
    with zipfile.ZipFile(wheel("native")) as archive:
        library = archive.read(library_name)
    # The library is stripped: the names left in it are those of what it needs, imports and exports.
    assert b"libtvm_ffi" in library
    assert b"__tvm_ffi_ema_update\0" in library
    for foreign in (
        b"libtorch",
        b"libc10",
        b"libpython",
        b"_ZN3c10",
        b"_ZN2at",
        b"_ZN5torch",
        b"_Py_",
        b"PyObject",
    ):
        assert foreign not in library, foreign


USE = """
import jepa_fast, jepa_fast.bench.measure, jepa_fast.commands.main, jepa_fast.models, sys, torch
assert jepa_fast.__file__.startswith(sys.prefix), jepa_fast.__file__
target, source = [torch.zeros(1000)], [torch.ones(1000)]
jepa_fast.ema_update_(target, source, 0.75, implementation="{implementation}")
assert (target[0] == 0.25).all()
print(jepa_fast.explain("ema", target, source))
"""


def test_native_wheel_works_elsewhere(install: Callable) -> None:
    installation = install("native")
    out = installation.run("python", "-c", USE.format(implementation="native"))
    assert out.startswith("ema: native\n")
    assert "usage: jepa-fast" in installation.run("jepa-fast", "--help")


@pytest.mark.parametrize("way", PURE)
def test_pure_wheel_works_elsewhere(install: Callable, way: str) -> None:
    out = install(way).run("python", "-c", USE.format(implementation="auto"))
    assert out.startswith("ema: reference\n")
    assert "not native: libjepa_fast_cpu.so is not part of this installation" in out
    assert "install a C++17 compiler" in out
