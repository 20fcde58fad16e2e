"""Launch a Triton kernel in the form that its configuration describes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .configuration import KernelConfiguration


def launch(configuration: KernelConfiguration, grid: Sequence[int], *arguments: Any) -> None:
    """Launch `configuration.kernel` over `grid` on the device of the first argument, a tensor.

    `arguments` are the run-time arguments in the kernel's order; compile-time ones come from the configuration.
    """
    first: Tensor = arguments[0]
    if first.is_cuda and first.device.index != torch.cuda.current_device():
        with torch.cuda.device(first.device):
            launch(configuration, grid, *arguments)
        return
    configuration.kernel[tuple(grid)](*arguments, **configuration.constexprs, **configuration.options)
