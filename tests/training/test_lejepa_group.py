"""LeJEPA's loss couples the images of a batch: over processes it is still that of the whole batch."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

WORKER = Path(__file__).with_name("lejepa_worker.py")


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_processes_have_the_gradient_of_the_whole_batch(spread: Callable[[str], list[Any]]) -> None:
    loss, expected = runpy.run_path(str(WORKER))["gradients"](None, slice(None))
    for found_loss, found in spread(str(WORKER)):
        torch.testing.assert_close(found_loss, loss, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
