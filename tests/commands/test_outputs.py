"""Where a command will write is tried before it measures or builds anything."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jepa_fast.commands.bench import Bench
from jepa_fast.commands.bench import run as bench
from jepa_fast.commands.codegen import Codegen
from jepa_fast.commands.codegen import run as codegen
from jepa_fast.commands.compare import Compare
from jepa_fast.commands.compare import run as compare
from jepa_fast.commands.errors import UsageError
from jepa_fast.commands.outputs import check_file


@pytest.mark.parametrize(
    "run",
    [
        lambda path: bench(Bench(("ema",), quick=True, export="test-infra-v3", output=path)),
        lambda path: compare(Compare("HEAD", "HEAD", markdown=path)),
        lambda path: codegen(Codegen(("ema",), json=path)),
    ],
)
def test_a_bad_path_is_refused_at_once(
    run: Callable[[Path], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("measured or built before the output was looked at")

    monkeypatch.setattr("jepa_fast.bench.measure.ceilings.measure_ceilings", too_late)
    monkeypatch.setattr("jepa_fast.bench.measure.sides.built", too_late)
    monkeypatch.setattr("jepa_fast.commands.codegen._find", too_late)
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "none" / "file", "No such file or directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(UsageError, match=rf"^--\w+: {path} cannot be written: {reason}$"):
            run(path)


def test_a_good_path_is_left_as_it_is(tmp_path: Path) -> None:
    new, old, link = tmp_path / "new", tmp_path / "old", tmp_path / "link"
    old.write_text("kept")
    link.symlink_to(tmp_path / "end")
    for path in (new, old, link, Path(os.devnull)):
        check_file("--output", path)
    assert old.read_text() == "kept"
    assert sorted(tmp_path.iterdir()) == [link, old]
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(UsageError, match=r"--output: .*link cannot be written: Too many levels"):
        check_file("--output", link)
