"""Changes from one version to another as a table for the terminal and as Markdown for a pull request."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from jepa_fast.bench.measure.changes import Change
from jepa_fast.bench.report.columns import duration, memory

HEADINGS = ("case", "old", "new", "new / old [95 %]", "noise floor", "verdict")
_STYLES = {"faster": "green", "slower": "red", "cannot tell": "dim"}
_ORDER = ("slower", "faster", "same", "cannot tell", None)
_MARKS = {"slower": "**slower**", "faster": "faster", "same": "same", "cannot tell": "cannot tell"}


def summary(changes: Sequence[Change]) -> str:
    """One line: how many of what."""
    counted = [
        (sum(c.verdict == "slower" and c.confirmed is True for c in changes), "slower"),
        (sum(c.verdict == "slower" and c.confirmed is not True for c in changes), "slower, unconfirmed"),
        *((sum(c.verdict == name for c in changes), name) for name in ("faster", "same", "cannot tell")),
        *((sum(c.status == name for c in changes), name) for name in ("failed", "gone", "new")),
    ]
    return ", ".join(f"{number} {name}" for number, name in counted if number) or "no cases"


def table(changes: Sequence[Change]) -> Table:
    """What was timed, slowdowns first."""
    found = Table(box=box.HORIZONTALS, caption="new / old: above 1 is slower", caption_justify="left")
    for heading in HEADINGS:
        left = heading in ("case", "verdict")
        found.add_column(heading, justify="left" if left else "right", overflow="fold")
    for change in ordered(changes):
        style = _STYLES.get(change.verdict or "", "")
        *cells, verdict = _cells(change)
        found.add_row(*map(Text, cells), Text(verdict, style=style))
    return found


def label(change: Change, *, suite: bool = False) -> str:
    """How a line names it; a CPU, which most runs are on, is left out."""
    parts = (change.suite if suite else "", change.op, change.shape, change.dtype)
    case = ", ".join(part for part in parts if part)
    if change.device not in ("", "cpu"):
        case += f" on {change.device}"
    return f"{case} (by {change.baseline})" if change.baseline else case


def ordered(changes: Sequence[Change]) -> list[Change]:
    """Those with figures, slowdowns first, the largest change first."""
    timed = [change for change in changes if change.ratio is not None]
    return sorted(timed, key=lambda c: (_ORDER.index(c.verdict), -(c.ratio or 0.0)))


def untimed(changes: Sequence[Change]) -> list[str]:
    """One line for every case without figures."""
    return [
        f"{change.status}: {label(change, suite=True)}: {change.note}"
        for change in changes
        if change.ratio is None
    ]


def markdown(
    changes: Sequence[Change], old: str, new: str, remarks: Sequence[str] = (), *, of_records: bool = False
) -> str:
    """For a comment under a pull request: the verdict, what changed, and the rest folded away.

    of_records: the times are of two records rather than of two revisions in turn.
    """
    timed = ordered(changes)
    moved = [change for change in timed if change.verdict in ("slower", "faster")]
    rest = [change for change in timed if change.verdict not in ("slower", "faster")]
    parts = [f"### jepa_fast: `{old}` to `{new}`", f"{summary(changes)}."]
    parts += [f"> **{remark}**" for remark in remarks]
    if moved:
        parts.append(_markdown_table(moved))
    if rest:
        parts.append(_folded(f"{len(rest)} without a change that can be told", _markdown_table(rest)))
    others = untimed(changes)
    if others:
        listed = "\n".join(f"- {_escaped(line)}" for line in others)
        parts.append(_folded(f"{len(others)} not compared", listed))
    how = "of one record each, and the ratio is relative to the baselines timed with them"
    parts.append(
        f"Times are of one call, {how if of_records else 'old and new timed in turn'}; a change counts once two "
        "measurements have shown it beyond the noise floor."
    )
    return "\n\n".join(parts) + "\n"


def _markdown_table(changes: Sequence[Change]) -> str:
    lines = [_line(HEADINGS), _line(["---"] * len(HEADINGS))]
    for change in changes:
        *cells, verdict = _cells(change)
        word = _MARKS.get(change.verdict or "", "")
        lines.append(_line([*map(_escaped, cells), verdict.replace(change.verdict or "", word, 1)]))
    return "\n".join(lines)


def _cells(change: Change) -> list[str]:
    old, new = (duration(times.median) if times else "" for times in (change.old, change.new))
    verdict: str = change.verdict or ""
    if change.verdict in ("slower", "faster") and change.confirmed is not True:
        verdict += ", unconfirmed"
    if change.allowed:
        verdict += f" (allowed: {change.allowed:.0%})"
    if change.note:
        verdict += f"; {change.note}"
    sizes = (change.old_peak_bytes, change.new_peak_bytes)
    if None not in sizes and sizes[0] != sizes[1]:
        verdict += f"; memory {memory(sizes[0] or 0)} to {memory(sizes[1] or 0)}"
    ratio = f"{change.ratio:.2f} [{change.low:.2f}, {change.high:.2f}]"
    return [label(change), old, new, ratio, f"{(change.floor or 1.0) - 1:.1%}", verdict]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"
