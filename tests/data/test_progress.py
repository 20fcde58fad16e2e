"""Quick work is silent, slow work shows where it is."""

import io

import pytest
from rich.console import Console

from jepa_fast.data import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves half a second whenever it is looked at."""
    now = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now) / 2)


def output(steps: int, *, terminal: bool) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=terminal, width=80)
    with progress.slow_progress("decoding", steps, console=console) as advance:
        for _ in range(steps):
            advance()
    return buffer.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_quick_work_is_silent(clock: None, terminal: bool) -> None:
    assert output(3, terminal=terminal) == ""


def test_without_a_terminal_it_is_a_line_every_ten_seconds(clock: None) -> None:
    lines = output(60, terminal=False).splitlines()
    assert lines == ["decoding: 4 of 60", "decoding: 24 of 60", "decoding: 44 of 60"]


def test_on_a_terminal_it_is_a_bar(clock: None) -> None:
    drawn = output(60, terminal=True)
    assert "decoding" in drawn
    assert "/60" in drawn
