import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
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

    # What a test or a fixture draws without a generator of its own is the same in every run.
    torch.manual_seed(0)
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


WORLD = 4
SECONDS = 120


@pytest.fixture(scope="session")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """spread(path): what run() of the Python file there returned in each of four processes, by rank.

    They form a gloo group and are forked from a process that has imported torch and its compiler: importing is most
    of what they would do.
    """
    import multiprocessing

    import torch
    import torch.multiprocessing as mp

    multiprocessing.set_forkserver_preload(["torch._dynamo", "jepa_fast", __name__])

    def run(worker: str) -> list[Any]:
        folder = tmp_path_factory.mktemp("spread")
        arguments = (worker, str(folder))
        processes = mp.start_processes(_one_of_many, arguments, WORLD, join=False, start_method="forkserver")
        deadline = time.monotonic() + SECONDS
        try:
            while not processes.join(timeout=1.0):  # raises what a process raised
                assert time.monotonic() < deadline, f"{worker}: not done in {SECONDS} s"
        finally:
            for process in processes.processes:
                process.kill()
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]

    return run


def _one_of_many(rank: int, worker: str, folder: str) -> None:
    import runpy
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store, timeout = dist.FileStore(f"{folder}/store", WORLD), timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timeout)
    try:
        torch.save(runpy.run_path(worker)["run"](), Path(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()
