"""What earlier runs of the code-generation gate compiled, in the user's cache folder."""

import contextlib
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import msgspec

from jepa_fast.kernels.runtime.codegen import CodegenRecord

KEPT_SECONDS = 60 * 24 * 3600
"""Entries that no run has read for so long are removed."""


class Cache:
    """Records by compilation key, one file each: `$XDG_CACHE_HOME/jepa_fast/codegen/<key>.json`.

    A key stands for the compiler, the kernel's source, its arguments, its options and the reader of the machine code,
    so an entry never goes out of date. One that cannot be read, or is of another key, is as good as none; a folder
    that cannot be written is no error.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def get(self, key: str, op: str, name: str) -> CodegenRecord | None:
        """The record of `key`, under the name that it has now."""
        path = self.folder / f"{key}.json"
        try:
            record = msgspec.json.decode(path.read_bytes(), type=CodegenRecord)
        except (OSError, msgspec.DecodeError):
            return None
        if record.key != key:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return replace(record, op=op, name=name)

    def put(self, record: CodegenRecord) -> None:
        """Keep `record`; other processes see the whole of it or nothing."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                file.write(msgspec.json.encode(record))
            os.replace(file.name, self.folder / f"{record.key}.json")

    def prune(self) -> None:
        """Remove what no run has read for long."""
        oldest = time.time() - KEPT_SECONDS
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < oldest:
                        path.unlink()


def default_folder() -> Path:
    """As the XDG base directory specification has it, which wants an absolute path."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(named) if os.path.isabs(named) else Path(os.path.expanduser("~")) / ".cache"
    return base / "jepa_fast" / "codegen"
