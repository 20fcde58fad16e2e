"""The room's implementations, and the dtype of its products."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..runtime.choice import Operation

OPERATION = Operation("patch_embed", __package__, triton="triton_patch_embed", native="native")


def compute_dtype(device: torch.device, otherwise: torch.dtype) -> torch.dtype:
    """Autocast's where it is on."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else otherwise


def as_told(tensor: Tensor) -> AbstractContextManager[object]:
    """Products in the dtype of their operands: autocast was asked before, by `compute_dtype`."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
