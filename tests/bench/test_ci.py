"""The workflows that docs/ci.md offers are YAML, and every command in them is one that there is."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from jepa_fast.commands.main import COMMANDS

yaml = pytest.importorskip("yaml")

DOCS = Path(__file__).parents[2] / "docs"
WORKFLOWS = sorted((DOCS / "ci").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_jobs_whose_commands_parse(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert {"name", "jobs", "permissions"} <= set(workflow)
    assert workflow[True]  # YAML reads the key `on` as a truth value
    commands = []
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        assert job["steps"][0]["uses"].startswith("actions/checkout@")
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            commands += re.findall(r"jepa-fast (.+)", step.get("run", ""))
    assert commands
    for command in commands:
        name, *arguments = shlex.split(command)
        tyro.cli(COMMANDS[name][0], args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


def test_the_page_names_both_files() -> None:
    text = (DOCS / "ci.md").read_text()
    assert len(WORKFLOWS) == 2
    assert all(f"(ci/{path.name})" in text for path in WORKFLOWS)
