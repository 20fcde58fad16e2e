"""The values of token indices."""

import os

import torch
from torch import Tensor

CHECK_VARIABLE = "JEPA_FAST_CHECK"


def check_values(name: str, index: Tensor, length: int) -> None:
    """On the CPU raise the error of `outside` if a value is not in [0, length). Elsewhere, where a look would stop the
    stream, assert on the device that there is none, and that only if `JEPA_FAST_CHECK=1`."""
    if index.numel() == 0:
        return
    if index.device.type == "cpu":
        lowest, highest = index.aminmax()
        if lowest < 0 or highest >= length:
            bad = (index < 0) | (index >= length)
            raise outside(name, index, int(bad.flatten().nonzero()[0]), length)
    elif os.environ.get(CHECK_VARIABLE) == "1":
        inside = ((index >= 0) & (index < length)).all()
        torch._assert_async(inside, f"{name}: expected values in [0, {length})")


def outside(name: str, index: Tensor, place: int, length: int) -> ValueError:
    """The error that names the value at flat `place`."""
    row, column = divmod(place, index.shape[1])
    return ValueError(
        f"{name}: expected int64 [B, K] with values in [0, {length}), "
        f"got {int(index[row, column])} at [{row}, {column}]"
    )


def check_form(name: str, index: Tensor, samples: int, device: torch.device) -> None:
    """Raise unless `index` is int64 [E * samples, K] on `device`."""
    if index.dtype != torch.int64:
        raise TypeError(f"{name}: expected int64, got {index.dtype}")
    if index.ndim != 2 or (index.shape[0] % samples if samples else index.shape[0]):
        raise ValueError(f"{name}: expected int64 [multiple of B = {samples}, K], got {list(index.shape)}")
    if index.device != device:
        raise ValueError(f"{name}: expected device {device}, got {index.device}")
