"""By how much each case may become slower: a TOML file.

slower = 0.03            # of every case that no entry below names: a share of its time

[[case]]                 # the last entry whose patterns all match counts
suite = "attention"      # shell patterns; what is left out matches everything
op = "masked_attention"
shape = "*fwd+bwd*"
dtype = "bfloat16"
slower = 0.10

[[case]]
suite = "host_cost"
skip = true              # not compared at all; false in a later entry takes it back
"""

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec


class Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    suite: str = "*"
    op: str = "*"
    shape: str = "*"
    dtype: str = "*"
    slower: float | None = None
    skip: bool | None = None

    def matches(self, *case: str) -> bool:
        # A shape's brackets are no character class.
        patterns = (self.suite, self.op, self.shape, self.dtype)
        return all(
            fnmatchcase(own, pattern.replace("[", "[[]")) for own, pattern in zip(case, patterns, strict=True)
        )


class Budgets(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The whole file; without one, nothing is allowed beyond what cannot be told from noise."""

    slower: float = 0.0
    case: list[Entry] = []

    def slower_of(self, *case: str) -> float:
        """The share by which a case, (suite, op, shape, dtype), may become slower."""
        found = [entry.slower for entry in self.case if entry.slower is not None and entry.matches(*case)]
        return found[-1] if found else self.slower

    def skipped(self, *case: str) -> bool:
        found = [entry.skip for entry in self.case if entry.skip is not None and entry.matches(*case)]
        return bool(found) and found[-1]


def load_budgets(path: Path) -> Budgets:
    """Raises OSError if the file cannot be read, and ValueError that names it if it is not of the form above."""
    try:
        budgets = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), type=Budgets)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{path}: expected budgets in TOML, got: {error}") from error
    for share in (budgets.slower, *(entry.slower for entry in budgets.case)):
        if share is not None and not 0 <= share < float("inf"):
            raise ValueError(f"{path}: slower: expected a share of at least 0, got {share}")
    return budgets
