"""The call under a group, which torch.compile leaves alone: collectives of sizes that the host reads cannot be traced.

A module of its own, imported where a group is given, as the decorator loads the compiler, and that Triton.
"""

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable
def untraced(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
