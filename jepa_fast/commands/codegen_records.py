"""The stored record of the code-generation gate: `bench/results/codegen.json` of a source checkout."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

import jepa_fast
from jepa_fast.commands.errors import UsageError
from jepa_fast.kernels.runtime.codegen import CodegenRecord

FORMAT_VERSION = 2
"""1 had no keys and no roofline."""
STORED = Path("bench", "results", "codegen.json")
RENEW = "`jepa-fast codegen --update`"


class Records(msgspec.Struct, frozen=True):
    """version: of this format. triton: the version that compiled the kernels."""

    version: int
    triton: str
    records: list[CodegenRecord]


class _Head(msgspec.Struct, frozen=True):
    version: int


class UnreadableError(UsageError):
    """The file is no record of this format, and may be written anew."""


def stored_path() -> Path:
    """Where this checkout keeps its record. Raises UsageError in an installed wheel."""
    checkout = Path(jepa_fast.__file__).resolve().parents[1]
    if not (checkout / "kernels" / "runtime").is_dir():
        raise UsageError(
            f"--check, --update: {STORED} is part of a source checkout; --json FILE works anywhere"
        )
    return checkout / STORED


def read(path: Path) -> Records:
    """The records in `path`. Raises UsageError if the file is missing or cannot be read as such."""
    try:
        content = path.read_bytes()
        version = msgspec.json.decode(content, type=_Head).version
        if version > FORMAT_VERSION:
            raise UsageError(
                f"{STORED}: format version {version} is newer than {FORMAT_VERSION}, which this jepa-fast reads; "
                "check out a newer one"
            )
        if version < FORMAT_VERSION:
            raise UnreadableError(
                f"{STORED}: format version {version} is older than {FORMAT_VERSION}; write it anew with {RENEW}"
            )
        return msgspec.json.decode(content, type=Records)
    except FileNotFoundError:
        raise UsageError(f"{STORED} does not exist yet; write it with {RENEW}") from None
    except msgspec.DecodeError as error:
        raise UnreadableError(f"{STORED}: {error}; write it anew with {RENEW}") from None


def write(path: Path, triton: str, records: Iterable[CodegenRecord]) -> None:
    """One record a line, sorted, so that git shows which kernels changed."""
    ordered = sorted(records, key=lambda record: (record.op, record.name, record.arch))
    head = msgspec.json.encode({"version": FORMAT_VERSION, "triton": triton}).decode().removesuffix("}")
    lines = ",\n".join(msgspec.json.encode(record).decode() for record in ordered)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},"records":[\n{lines}\n]}}\n')
