"""Where Triton can run, answered without importing it."""

import functools
import importlib.util
import os

import torch


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run on the CPU through Triton's interpreter (TRITON_INTERPRET=1 before the first kernel)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _capability(device_index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device_index)


def why_not(device: torch.device) -> list[str]:
    """Why Triton cannot run kernels on `device`; empty if it can."""
    if not _installed():
        return ["the package triton is not installed"]
    if interpreted():
        return []
    if device.type != "cuda":
        return [
            f"the tensors are on {device.type}, not cuda (TRITON_INTERPRET=1 interprets kernels on the CPU)"
        ]
    capability = _capability(torch.cuda.current_device() if device.index is None else device.index)
    if capability < (8, 0):
        return [f"compute capability {capability[0]}.{capability[1]} is below 8.0"]
    return []
