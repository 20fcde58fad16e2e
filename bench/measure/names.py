"""Names that a reader typed, held against those that there are."""

import difflib
from collections.abc import Iterable


def check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for the first of `names` that is not in `known`, with the nearest that is, in either case."""
    choices = sorted(known)
    for name in names:
        if name not in choices:
            folded = {choice.lower(): choice for choice in choices}
            near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
            hint = f"; did you mean {folded[near[0]]}?" if near else ""
            raise ValueError(f"{what}: expected some of {', '.join(choices)}, got {name}{hint}")
