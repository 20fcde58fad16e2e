import os

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

    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    # Only where the library was not built; one that is there and does not load has to fail.
    if item.get_closest_marker("native") and native.library_path() is None:
        pytest.skip(f"{native.LIBRARY} was not built")
