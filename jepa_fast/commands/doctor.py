"""`jepa-fast doctor`: what this machine has, what each op would run on it, and what is missing."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jepa_fast.kernels.runtime.codegen import ARCHITECTURES

if TYPE_CHECKING:
    import torch

Facts = dict[str, str]

VERSIONS = ("jepa-fast", "torch", "triton", "apache-tvm-ffi", "numpy")
EXTRAS = {"data": "images and videos", "bench": "measurements and reports"}


@dataclass(frozen=True)
class Doctor:
    """Show the devices, what each op would run on them, and what is missing.

    Exit code: 0 if every op can run on every device, 1 if one cannot.
    """


def run(config: Doctor) -> int:
    """0 if every op can run on every device, 1 otherwise."""
    console = Console()
    versions = {name: _version(name) or "not installed" for name in VERSIONS}
    _print_facts(console, "Versions", {"python": platform.python_version()} | versions)
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        _print_advice(console, [f"torch cannot be imported ({error}); `pip install torch` installs it"])
        return 1
    from jepa_fast.kernels.runtime import rooms

    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    _print_facts(console, "Machine", _machine())
    _print_facts(console, "Kernels", {"native": _native(), "triton": _triton(devices)})

    table = Table("op", "device", "runs", "others do not, because", title="Ops", title_justify="left")
    usable = True
    for op in rooms.names():
        for device in devices:
            chosen, reasons = _choice(op, device)
            usable = usable and chosen is not None
            runs = Text(chosen) if chosen else Text("nothing", style="red")
            table.add_row(op, str(device), runs, Text("\n".join(reasons)))
    console.print(table, "")
    _print_advice(console, list(_advice(devices)))
    return 0 if usable else 1


def _choice(op: str, device: "torch.device") -> tuple[str | None, list[str]]:
    """What `op` chooses for its own example inputs on `device`, and why not the others."""
    from jepa_fast.kernels.runtime import rooms

    try:
        api = rooms.api(op)
        explanation = api.explain(*api.example_inputs(device))
    except Exception as error:  # whatever is broken here is what the reader came to find out
        return None, [f"{type(error).__name__}: {error}"]
    return explanation.chosen, [f"{name}: {'; '.join(why)}" for name, why in explanation.refusals.items()]


def _machine() -> Facts:
    import torch

    model = _cpuinfo("model name") or platform.processor() or "unknown"
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    driver, cuda = _driver(), torch.version.cuda
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": f"{model}, {cores} cores, {threads} threads for torch and the native kernels",
        "nvidia": f"{f'driver {driver}' if driver else 'no driver'}, torch built "
        f"{f'for CUDA {cuda}' if cuda else 'without CUDA'}",
    }
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        facts[f"cuda:{i}"] = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
    return facts


def _native() -> str:
    import torch

    from jepa_fast.kernels.runtime import native

    refusals = native.why_not(torch.device("cpu"))
    path = native.library_path()
    if refusals or path is None:
        return "; ".join(refusals)
    levels = {library: level for level, library in native.LIBRARIES.items()}
    level = levels.get(path.name, "baseline")
    # GCC's and LLVM's OpenMP calls by name: without them the loops run on one thread.
    parallel = any(symbol in path.read_bytes() for symbol in (b"GOMP_parallel", b"__kmpc_fork_call"))
    return f"{level} code, {'OpenMP' if parallel else 'no OpenMP: one thread'}, {path}"


def _triton(devices: list["torch.device"]) -> str:
    from jepa_fast.kernels.runtime import triton_support

    refusals = {str(device): triton_support.why_not(device) for device in devices}
    runs = [device for device, why in refusals.items() if not why]
    compiles = ", ".join(f"sm_{arch}" for arch in ARCHITECTURES)
    if _version("triton") is None:
        return "not installed"
    if not runs:
        return f"no device to run on; `jepa-fast codegen` compiles for {compiles}"
    return f"runs on {', '.join(runs)}"


def _advice(devices: list["torch.device"]) -> Iterator[str]:
    """What to do about what is missing."""
    import torch

    from jepa_fast.kernels.runtime import native

    if len(devices) == 1 and _driver():
        if torch.version.cuda is None:
            yield "this torch knows no CUDA, but there is an NVIDIA driver: install a CUDA build of torch"
        else:
            yield "torch finds no CUDA device, but there is an NVIDIA driver: see CUDA_VISIBLE_DEVICES"
    if platform.system() == "Linux" and _version("triton") is None:
        yield "`pip install 'triton>=3.6'` brings the GPU kernels' compiler"
    yield from native.why_not(torch.device("cpu"))
    for extra, purpose in EXTRAS.items():
        missing = _missing(extra)
        if missing:
            yield f"`pip install 'jepa-fast[{extra}]'` brings {purpose} ({', '.join(missing)})"


def _missing(extra: str) -> list[str]:
    """The distributions of an extra that are not installed."""
    requirements = importlib.metadata.requires("jepa-fast") or []
    of_extra = (r for r in requirements if re.search(rf"extra == ['\"]{extra}['\"]", r))
    names = (re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in of_extra)
    return [name for name in names if _version(name) is None]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(rf"^{field}\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1].strip() if found else ""


def _driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", path.read_text()) if path.exists() else None
    return found[0] if found else None


def _print_facts(console: Console, title: str, facts: Facts) -> None:
    grid = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        grid.add_row(f"  {name}", Text(fact, overflow="fold"))
    console.print(Text(title, style="bold"), grid, "")


def _print_advice(console: Console, advice: list[str]) -> None:
    if advice:
        console.print(Text("To do", style="bold"))
    for line in advice:
        console.print(f"  - {line}", markup=False, highlight=False, soft_wrap=True)
