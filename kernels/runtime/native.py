"""The native CPU library: found beside this package, loaded on first use, called through TVM FFI.

Torch-free shared libraries hold the C++ kernels of every room (CMakeLists.txt), one for each instruction set. PyTorch
says which of them the CPU has, so that its ATEN_CPU_CAPABILITY=avx2 or default chooses for these kernels, too. A wheel
built without a C++ compiler has no library.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LIBRARY = "libjepa_fast_cpu.so"
"""For every CPU of the architecture."""
LIBRARIES = {"AVX512": "libjepa_fast_cpu_avx512.so", "AVX2": "libjepa_fast_cpu_avx2.so"}
"""By what `torch.backends.cpu.get_cpu_capability()` calls the instruction set; the others take `LIBRARY`."""


def library_path() -> Path | None:
    """Path of the native library for this CPU, None if this installation has none.

    An editable installation keeps sources and built files apart, so every folder of this package is searched.
    """
    name = LIBRARIES.get(torch.backends.cpu.get_cpu_capability(), LIBRARY)
    for folder in sys.modules[__package__].__path__:
        path = Path(folder) / name
        if path.is_file():
            return path
    return None


@functools.cache
def _load() -> tuple[Any, str]:
    """(module, "") or (None, reason)."""
    path = library_path()
    if path is None:
        return None, (
            f"{LIBRARY} is not part of this installation (it was built without a C++ compiler); "
            "install a C++17 compiler and reinstall jepa-fast"
        )
    try:
        import tvm_ffi

        return tvm_ffi.load_module(str(path)), ""
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return None, f"{path.name} could not be loaded: {' '.join(str(error).split())}"


def why_not(device: torch.device) -> list[str]:
    """Why native kernels cannot serve tensors on `device`; empty if they can."""
    if device.type != "cpu":
        return [f"the tensors are on {device.type}, not cpu"]
    module, reason = _load()
    return [] if module is not None else [reason]


@functools.cache
def function(name: str) -> Callable[..., Any]:
    """The exported native function `name`. Call it only where `why_not` is empty."""
    module, reason = _load()
    if module is None:
        raise RuntimeError(reason)
    return module[name]
