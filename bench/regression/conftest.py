"""Options of the regression run, and the device timer."""

from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jepa_fast")
    group.addoption("--suites", default="", help="suites to run, with commas between them (default: all)")
    group.addoption("--all-cases", action="store_true", help="not the quick cases alone")
    group.addoption(
        "--against", default="", help="peers to run beside ours, by the names of `jepa-fast bench --against`"
    )


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    from jepa_fast.bench.measure.float32 import full_float32

    with full_float32():
        yield
