"""Files of tensors: what PyTorch pickles, and safetensors. Nothing in a file is ever executed."""

import pickle
import re
import warnings
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
        with warnings.catch_warnings():  # about pickles of another protocol, which are refused or read
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except (
        pickle.UnpicklingError,
        KeyError,
    ) as error:  # torch's text says at length how to run what is in the file
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise WeightsError(f"{path}: holds more than tensors ({found[1]}), which is not loaded") from None
        raise WeightsError(f"{path}: expected a file of tensors, got one that cannot be read") from None
    except Exception as error:  # of any kind: what the bytes of a file that is no pickle stand for
        reason = "".join(filter(str.isprintable, " ".join(str(error).split())))[:200]
        raise WeightsError(
            f"{path}: expected a file of tensors, got one that cannot be read: {reason}"
        ) from None
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    return dict(content)


def write(path: Path, content: Mapping[str, Any]) -> None:
    """A file that is whole or not there: written beside its place and then moved to it. Raises OSError."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    beside = path.with_name(path.name + ".part")
    try:
        beside.touch()
        # What the umask grants; safetensors lets the owner alone read it.
        mode = beside.stat().st_mode & 0o777
        if path.suffix == SAFETENSORS:
            tensors = {key: value.contiguous() for key, value in content.items() if isinstance(value, Tensor)}
            save_file(tensors, beside, metadata={"format": "pt"})
            beside.chmod(mode)
        else:
            torch.save(dict(content), beside)
        beside.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OSError(f"{path} cannot be written: {reason}") from error
    finally:
        beside.unlink(missing_ok=True)
