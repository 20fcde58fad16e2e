"""Self-contained HTML pages: no address to load, no script, no font."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from jepa_fast.bench.measure import Machine, Row
from jepa_fast.bench.report.columns import Column

_TONES = {"faster": "good", "slower": "bad", "cannot tell": "quiet"}


def render(template: str, **context: Any) -> str:
    """The page of a template of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["tone"] = _tone
    return environment.get_template(template).render(**context)


def definitions(columns: Sequence[Column]) -> list[tuple[str, str]]:
    """What each column means."""
    return [(column.heading, column.meaning) for column in columns]


def machine_facts(machine: Machine) -> list[tuple[str, str]]:
    """The fingerprint in words."""
    sets = f" ({', '.join(machine.instruction_sets)})" if machine.instruction_sets else ""
    facts = [
        ("processor", f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads used{sets}"),
        ("memory", f"{machine.memory_gib} GiB"),
    ]
    if machine.gpu:
        facts.append(("GPU", f"{machine.gpu}, driver {machine.gpu_driver}"))
    triton = machine.triton or "not installed"
    commit = f"commit {machine.git_commit[:12]}" if machine.git_commit else "not from a git commit"
    changed = " with uncommitted changes" if machine.git_dirty else ""
    return [
        *facts,
        ("software", f"{machine.system}, Python {machine.python}, PyTorch {machine.torch}, Triton {triton}"),
        ("jepa_fast", f"{machine.jepa_fast}, {commit}{changed}, kernel sources {machine.kernels_hash}"),
    ]


def _tone(row: Row) -> str:
    """The CSS class that colours a verdict."""
    return "bad" if row.reason else _TONES.get(row.verdict or "", "")
