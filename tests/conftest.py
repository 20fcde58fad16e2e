import os
import sys
from types import ModuleType
from typing import Any

import pytest

# Threads that wait for each other give the core away: on a busy machine the suite takes half the time.
# OpenMP reads this when torch loads it, hence no import of torch above.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_configure() -> None:
    import torch

    # Without a GPU, Triton kernels run through its interpreter, which has to be chosen before Triton is imported.
    # Children that compile kernels for real drop the variable themselves.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    import torch

    from jepa_fast.kernels.runtime import native

    _quicken_interpreter()
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    # Only where the library was not built; one that is there and does not load has to fail.
    if item.get_closest_marker("native") and native.library_path() is None:
        pytest.skip(f"{native.LIBRARY} was not built")


def _quicken_interpreter() -> None:
    """Triton's interpreter replaces the functions of its language at every launch, and all of them again at every call
    of a device function, which takes half of its time. A launch replaces them once here.

    Nothing is done until some test has loaded the interpreter, nor with a version that is built otherwise.
    """
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if not hasattr(interpreter, "_LangPatchScope") or hasattr(interpreter, "quickened"):
        return
    language = sys.modules["triton.language"]
    patch = interpreter._patch_lang
    patched: set[tuple[bool, ...]] = set()

    def patch_once(function: Any) -> Any:
        seen = [value for value in function.__globals__.values() if isinstance(value, ModuleType)]
        modules = tuple(module in seen for module in (language, language.core))
        if modules in patched:
            return None  # a device function's, which nobody restores
        outermost = not patched
        patched.add(modules)
        scope = patch(function)
        if outermost:
            restore = scope.restore

            def restore_all() -> None:
                patched.clear()
                restore()

            scope.restore = restore_all
        return scope

    interpreter._patch_lang = patch_once
    interpreter.quickened = True
