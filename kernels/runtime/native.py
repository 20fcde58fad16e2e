"""The native CPU library: found beside this package, loaded on first use, called through TVM FFI.

One torch-free shared library holds the C++ kernels of every room (CMakeLists.txt); run-time dispatch inside it
picks AVX-512, AVX2 or baseline code. A wheel built without a C++ compiler has no library.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LIBRARY = "libjepa_fast_cpu.so"


def library_path() -> Path | None:
    """Path of the native library, None if this installation has none.

    An editable installation keeps sources and built files apart, so every folder of this package is searched.
    """
    for folder in sys.modules[__package__].__path__:
        path = Path(folder) / LIBRARY
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
