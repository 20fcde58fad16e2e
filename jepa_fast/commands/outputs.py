"""Where a command will write, tried before minutes of work rather than after them."""

import os
import tempfile
from pathlib import Path

from jepa_fast.commands.errors import UsageError


def check_file(option: str, path: Path) -> None:
    """Raises UsageError if no file can be written there; what is there stays as it is."""
    target = Path(os.path.realpath(path))  # a link whose end is not there yet is made at its end
    try:
        if target.exists() and not (target.is_file() or target.is_dir()):
            return  # a device, or a pipe, whose reader would take a look for all of it
        is_new = not target.exists()
        with target.open("ab"):
            pass
        if is_new:
            target.unlink()
    except OSError as error:
        raise UsageError(f"{option}: {path} cannot be written: {error.strerror}") from None


def check_folder(option: str, folder: Path) -> None:
    """Makes the folder. Raises UsageError if no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{option}: {folder} cannot be written: {error.strerror}") from None
