"""Checkpoints: one safetensors file each, written so that a crash at any moment loses nothing.

A state is any nesting of dicts (keys str or int), lists and tuples, with tensors, numbers, strings,
booleans and None at its leaves. The tensors are stored as they are, under their dotted path, and the
rest as JSON in the header of the file. Nothing is pickled: loading runs no code from the file.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT_VERSION = 1
_HEADER_KEY = "jepa_fast.checkpoint"
STAGING_NAME = ".checkpoint.partial"
SUFFIX = ".safetensors"
_STEP_NAME = re.compile(rf"step_(\d+){re.escape(SUFFIX)}")


class CheckpointError(ValueError):
    """A file is damaged or no checkpoint that can be used here; the message names it."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """The checkpoint after `step` training steps."""
    return folder / f"step_{step:08d}{SUFFIX}"


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, earliest step first."""
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := _STEP_NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def later_checkpoints(folder: Path, step: int) -> list[Path]:
    """The complete checkpoints in `folder` after `step`."""
    return [path for path in list_checkpoints(folder) if int(path.stem.removeprefix("step_")) > step]


def latest_checkpoint(folder: Path) -> Path:
    """The checkpoint of the latest step in `folder`; FileNotFoundError when there is none."""
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise FileNotFoundError(f"no checkpoint (step_*.safetensors) in {folder}")
    return checkpoints[-1]


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Deletes all checkpoints in `folder` but the `keep` latest."""
    for path in list_checkpoints(folder)[: -max(1, keep)]:
        path.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes `state` to `path`, which is either untouched or complete, even if killed half-way.

    The data goes to a hidden folder beside it, is flushed to the disk and then moved into place. What a
    save that was killed left behind there is removed first.

    Raises OSError when the file cannot be written, TypeError for a value of another type.
    """
    tensors: dict[str, Tensor] = {}
    tree = {key: _encode(value, key, tensors) for key, value in state.items()}
    header = {_HEADER_KEY: json.dumps({"version": FORMAT_VERSION, "tree": tree})}
    staging = path.parent / STAGING_NAME
    partial = staging / path.name
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            save_file(_storable(tensors), partial, metadata=header)
            # safetensors lets the owner alone read it; the folder has what the umask grants.
            partial.chmod(staging.stat().st_mode & 0o666)
            _flush_to_disk(partial)
            os.replace(partial, path)
            _flush_to_disk(path.parent)  # the move itself
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def load_checkpoint(path: Path, *, required: Iterable[str] = ()) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote to `path`, bit for bit, tensors on the CPU.

    Raises FileNotFoundError, and CheckpointError when the file is damaged, no checkpoint, of another
    format version, or lacks one of the `required` keys.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    with _reading(path), safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_HEADER_KEY)
        if text is None:
            raise CheckpointError(f"{path}: weights alone, not a jepa_fast checkpoint")
        header = json.loads(text)
        if header["version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: expected checkpoint format {FORMAT_VERSION}, got {header['version']}"
            )
        missing = sorted(set(required) - header["tree"].keys())
        if missing:
            raise CheckpointError(f"{path}: lacks {', '.join(missing)}")
        return {key: _decode(value, file) for key, value in header["tree"].items()}


def load_optimizer(path: Path) -> dict[str, Any] | None:
    """The state of the optimizer in the checkpoint of a training step at `path`; None for any other file.

    Raises CheckpointError when the checkpoint is damaged.
    """
    if path.suffix != SUFFIX:
        return None
    with _reading(path), safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_HEADER_KEY)
        if text is None:
            return None
        training = dict(json.loads(text)["tree"]["training"]["dict"])
        state: dict[str, Any] | None = _decode(training.get("optimizer"), file)
        return state


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: damaged, or not a jepa_fast checkpoint: {error}") from error


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; its tensors go to `tensors`. Containers and tensors become one-entry objects."""
    if isinstance(value, Tensor):
        while name in tensors:  # {"a.b": x, "a": {"b": y}} has two of them
            name += "_"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{name}: expected keys of type str or int, got {key!r}")
        return {"dict": [[key, _encode(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{name}: a checkpoint cannot hold a {type(value).__name__}")


def _decode(value: Any, file: Any) -> Any:
    """What `_encode` made `value` of; `file` is the open one of safetensors that has the tensors."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        # Cloned: the file may be deleted, or its disk unmounted, while the tensors live on.
        return file.get_tensor(content).clone()
    if kind == "dict":
        return {key: _decode(item, file) for key, item in content}
    items = [_decode(item, file) for item in content]
    return items if kind == "list" else tuple(items)


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, and each with a memory of its own, as safetensors wants them."""
    storages: set[int] = set()
    storable = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        storable[name] = tensor.clone() if address in storages else tensor
        storages.add(address)
    return storable


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
