"""The README shows the newest figures of every suite, and changes nothing but what stands between its markers."""

import datetime as dt
from pathlib import Path

import pytest
from msgspec.structs import replace

from jepa_fast.bench.measure import Record, Row, Times, fingerprint, save_record
from jepa_fast.bench.report import readme


def dated(day: int, *suites: str, cpu: str = "Some CPU", **machine: str) -> Record:
    """A record of that day with a measured and a failed row of every suite."""
    rows = []
    for suite in suites:
        failed = Row(
            suite=suite, op="op", shape=f"{suite} of day {day}", dtype="float32", device="cpu", reason="no"
        )
        times = {"time": Times(1.0, 1.0, 1.0, 9), "baseline_time": Times(2.0, 2.0, 2.0, 9)}
        rows += [failed, replace(failed, reason="", ratio=2.0, ratio_low=1.9, ratio_high=2.1, **times)]
    return Record(
        created=dt.datetime(2026, 11, day, tzinfo=dt.UTC),
        command="jepa-fast bench",
        machine=replace(fingerprint(), cpu=cpu, gpu=None, **machine),
        load_average=None,
        rows=rows,
    )


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    stopped = replace(dated(3, "ema"), complete=False)
    for one in (dated(1, "ema", "old"), dated(2, "ema", "new"), dated(1, "ema", cpu="Another CPU"), stopped):
        save_record(one, folder)
    return folder


def test_the_newest_row_of_every_suite_and_machine_is_shown(tmp_path: Path, results: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before {readme.BEGIN} stale figures {readme.END} after")
    readme.update(page, results)
    text = page.read_text()
    assert text.startswith(f"before {readme.BEGIN}")
    assert text.endswith(f"{readme.END} after")
    assert "stale figures" not in text
    shown = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| `")]
    assert shown == ["ema of day 1", "old of day 1", "ema of day 2", "new of day 2"]
    assert text.index("Another CPU") < text.index("Some CPU")


def test_figures_of_other_sources_come_last_and_folded(tmp_path: Path) -> None:
    for record in (dated(2, "ema", cpu="A CPU", kernels_hash="another"), dated(1, "ema", cpu="Some CPU")):
        save_record(record, tmp_path / "results")
    page = tmp_path / "README.md"
    page.write_text(readme.BEGIN + readme.END)
    readme.update(page, tmp_path / "results")
    shown, folded = page.read_text().split("<details>")
    assert "ema of day 1" in shown
    assert shown.count("Stale") == 1
    assert shown.index("on Some CPU") < shown.index("on A CPU") < shown.index("Stale")
    assert "ema of day 2" in folded.partition("</details>")[0]


def test_a_later_run_on_the_cpu_leaves_the_figures_of_the_gpu(tmp_path: Path) -> None:
    machine = replace(fingerprint(), gpu="Some GPU", cpu="Some CPU")
    for day, device in ((1, "cuda"), (2, "cpu")):
        record = dated(day, "ema")
        rows = [replace(row, device=device) for row in record.rows]
        save_record(replace(record, rows=rows, machine=machine), tmp_path / "results")
    page = tmp_path / "README.md"
    page.write_text(readme.BEGIN + readme.END)
    readme.update(page, tmp_path / "results")
    text = page.read_text()
    assert text.index("on Some GPU, torch") < text.index("ema of day 1") < text.index("on Some CPU")
    assert text.index("on Some CPU") < text.index("ema of day 2")


@pytest.mark.parametrize("records", [None, [], [replace(dated(1, "ema"), complete=False)]])
@pytest.mark.parametrize("options", [[], ["--check"]])
def test_without_a_record_the_page_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], records: list[Record] | None, options: list[str]
) -> None:
    folder, page = tmp_path / "results", tmp_path / "README.md"
    if records is not None:
        folder.mkdir()
    for record in records or []:
        save_record(record, folder)
    text = f"{readme.BEGIN} figures {readme.END}"
    page.write_text(text)
    assert readme.main([str(page), "--results", str(folder), *options]) == 2
    assert page.read_text() == text
    assert capsys.readouterr().err == (
        f"readme: error: --results: expected a folder with a complete record of figures, got {folder}\n"
    )


def test_a_page_without_markers_is_refused(tmp_path: Path, results: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("no figures here")
    with pytest.raises(ValueError, match="expected the markers"):
        readme.update(page, results)
    assert page.read_text() == "no figures here"
