"""The page on all records: figures, stale marks, commands, and nothing to load."""

import datetime as dt
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jepa_fast.bench.measure import Record, Row
from jepa_fast.bench.measure.ceilings import Ceilings
from jepa_fast.bench.report.records_page import command_of, records_page

CEILINGS = Ceilings(device="cpu", copy_gbs=10.0, matmul_tflops={"float32": 0.1, "bfloat16": 0.2})


def test_the_page_has_every_figure_and_loads_nothing(
    make_row: Callable[..., Row], make_record: Callable[..., Record]
) -> None:
    row = make_row(bytes=10**8, flops=10**8, peer="eager")
    later = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
    old, new = (
        make_record(row),
        make_record(row, created=later, ceilings=CEILINGS, missing=["xformers: no <b>"]),
    )
    text = records_page({Path("old.json"): old, Path("new.json"): new})
    for alt in ("Roofline", "History over commits", "Times faster than the baseline", "Peak extra memory"):
        assert f'alt="{alt}' in text
    assert all(address.startswith("data:image/svg") for address in re.findall(r'src="([^"]*)"', text))
    assert "<script" not in text
    assert "Stale: the kernels have changed since." in text
    assert "xformers: no &lt;b&gt;" in text
    assert "git checkout 0123456789ab" in text
    assert "From new.json." in text
    assert "From old.json." not in text


def test_a_row_has_the_command_that_measures_it(make_row: Callable[..., Row]) -> None:
    assert command_of(make_row(peer="eager")) == (
        "jepa-fast bench ema --case 'ema_update_, ViT-B/16 encoder, float32' --against eager --device cpu"
    )


def test_a_stopped_run_is_shown_marked_if_it_is_named_or_the_only_one(
    make_row: Callable[..., Row], make_record: Callable[..., Record]
) -> None:
    mark = "Incomplete: the run was stopped before its last case."
    later = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
    stopped = {Path("stopped.json"): make_record(make_row(), created=later, complete=False)}
    both = {Path("done.json"): make_record(make_row()), **stopped}
    assert mark in records_page(stopped)
    text = records_page(both)
    assert mark not in text
    assert "From done.json." in text
    text = records_page(both, with_stopped=True)
    assert "From stopped.json." in text
    assert mark in text


def test_without_a_measured_row_there_is_no_page(make_record: Callable[..., Record]) -> None:
    with pytest.raises(ValueError, match="expected at least one with a measured row"):
        records_page({Path("none.json"): make_record()})
