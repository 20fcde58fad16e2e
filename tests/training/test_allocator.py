"""`keep_freed_memory`, each time in a process of its own, as it cannot be taken back."""

import os
import platform
import subprocess
import sys

import pytest

PAGES = 16384  # of a tensor of 64 MB
PROGRAM = """
import resource, sys, torch
from jepa_fast.training.allocator import keep_freed_memory

def touch():
    torch.ones(1 << 24)  # larger than anything that glibc keeps by itself

kept = sys.argv[1] == "keep" and keep_freed_memory()
for _ in range(10):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="expected glibc")


def run(argument: str, **settings: str) -> tuple[bool, int]:
    """Whether memory is kept, and page faults."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument],
        env=own | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == "1", int(faults)


def test_pages_are_touched_once() -> None:
    assert run("keep") == (True, pytest.approx(0, abs=PAGES / 4))
    assert run("do not")[1] > 5 * PAGES


def test_settings_of_the_environment_stay() -> None:
    kept, faults = run("keep", MALLOC_TRIM_THRESHOLD_="100000")
    assert not kept
    assert faults > 5 * PAGES
