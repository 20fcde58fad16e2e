"""Files of tensors: what PyTorch pickles, and safetensors. Nothing in a file is ever executed."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

SAFETENSORS = ".safetensors"


class WeightsError(ValueError):
    """A file that does not fit; one line that names the file and the first thing that is wrong."""


def read(path: Path) -> dict[str, Any]:
    """What is in a file, on the CPU. Raises FileNotFoundError, or WeightsError for what is no file of tensors."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if path.suffix == SAFETENSORS:
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path}: expected a file of tensors, got one that cannot be read: {reason}"
        ) from None
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    return dict(content)


def write(path: Path, content: Mapping[str, Any]) -> None:
    """A file that is whole or not there: written beside its place and then moved to it."""
    beside = path.with_name(path.name + ".part")
    if path.suffix == SAFETENSORS:
        tensors = {key: value.contiguous() for key, value in content.items() if isinstance(value, Tensor)}
        save_file(tensors, beside, metadata={"format": "pt"})
    else:
        torch.save(dict(content), beside)
    beside.replace(path)
