"""The machine and the sources that a figure belongs to."""

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import msgspec
import torch

import jepa_fast.kernels

BUSY_SHARE = 0.5  # of the cores: from there on a parallel op waits for cores that others hold
KERNEL_SOURCES = frozenset({".py", ".cpp", ".h", ".cu", ".cuh"})
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a figure depends on besides the code's own arguments. Holds no host name, user or path."""

    cpu: str
    instruction_sets: list[str]
    cores: int
    threads: int
    memory_gib: float
    gpu: str | None
    gpu_driver: str | None
    gpu_memory_gib: float | None = None  # what older records lack
    system: str
    python: str
    torch: str
    triton: str | None
    jepa_fast: str
    git_commit: str | None
    git_dirty: bool | None
    kernels_hash: str

    @property
    def processor(self) -> str:
        """The CPU and the widest of its instruction sets, as generations may share a name."""
        return f"{self.cpu} ({self.instruction_sets[-1]})" if self.instruction_sets else self.cpu

    @property
    def short_name(self) -> str:
        """Words for a file name: the processor and its cores, or the GPU."""
        words = self.gpu or f"{self.processor} {self.cores} cores"
        return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", words.lower())).strip("-")


def fingerprint() -> Machine:
    """The machine this process runs on, and the revision and kernel sources it runs."""
    commit, dirty = _git_state()
    has_gpu = torch.cuda.is_available()
    flags = _cpu_flags()
    return Machine(
        cpu=_cpu_model(),
        instruction_sets=[name for name in INSTRUCTION_SETS if name in flags],
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        gpu=torch.cuda.get_device_name() if has_gpu else None,
        gpu_driver=_gpu_driver() if has_gpu else None,
        gpu_memory_gib=round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
        if has_gpu
        else None,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        triton=_version("triton"),
        jepa_fast=_version("jepa-fast") or "not installed",
        git_commit=commit,
        git_dirty=dirty,
        kernels_hash=kernels_hash(),
    )


def choose_device(name: str) -> torch.device:
    """Of "auto", "cpu" and "cuda". Raises ValueError where CUDA was asked for and is not there."""
    # training.setup has the same, but imports the readers of images and videos.
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device: cuda was asked for, but PyTorch finds no CUDA device")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def load_average() -> float | None:
    """Programs that ran on this machine in the last minute, on average; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def is_busy(load: float | None, machine: Machine) -> bool:
    """Whether that load average disturbs what is timed on the machine."""
    return load is not None and load > machine.cores * BUSY_SHARE


def kernels_hash() -> str:
    """SHA-256 over the paths and contents of the kernel sources in use, 16 hex digits."""
    digest = hashlib.sha256()
    for root in sorted(Path(folder) for folder in jepa_fast.kernels.__path__):
        for source in sorted(path for path in root.rglob("*") if path.suffix in KERNEL_SOURCES):
            digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _git_state() -> tuple[str | None, bool | None]:
    folder = Path(__file__).parent
    commit = _output_of("git", "-C", str(folder), "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changes = _output_of("git", "-C", str(folder), "status", "--porcelain")
    return commit, bool(changes)


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _cpu_model() -> str:
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    if found:
        return found[1].strip()
    return (
        _output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()
    )


def _cpu_flags() -> frozenset[str]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu_driver() -> str | None:
    answer = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.splitlines()[0] if answer else None
