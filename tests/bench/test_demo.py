"""The demonstration end to end on a tiny model and pictures made here."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from torch import Tensor

from jepa_fast import models
from jepa_fast.bench import demo
from jepa_fast.bench.demo import Demo, Size, run
from jepa_fast.models import IJEPAConfig
from jepa_fast.training.step import IJEPAStep

TINY = Size(model="tiny", batch_size=4, steps=5, op_budget_s=0.05)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(8):
        pixels = random.integers(256, size=(6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 72)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    config = IJEPAConfig(48, 4, 48, 2, 2, 96, predictor_depth=1, predictor_dim=32)
    monkeypatch.setitem(models._CONFIGS, "tiny", config)
    monkeypatch.setitem(demo.SIZES, "cpu", TINY)
    monkeypatch.setattr(demo, "OP_SUITES", ("host_cost",))


def test_both_ways_agree_and_the_report_is_written(tmp_path: Path, pictures: Path) -> None:
    console = Console(record=True, width=110, file=io.StringIO())
    output = tmp_path / "report.html"
    assert run(Demo(output, data=pictures, device="cpu"), console) == 0
    text = console.export_text()
    assert "float32: the losses agree at all 5 steps" in text
    assert "bfloat16: the losses agree at all 5 steps" in text
    assert "times faster" in text
    assert "The losses agree at every step." in output.read_text(encoding="utf-8")


def test_where_time_is_short_fewer_steps_are_held_to_the_same_reference(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TRAINING_BUDGET_S", 0.0)
    console = Console(record=True, width=110, file=io.StringIO())
    assert run(Demo(tmp_path / "report.html", data=pictures, steps=30, device="cpu"), console) == 0
    found = re.search(
        r"bfloat16: the losses agree at all 4 steps; .* difference (\S+),", console.export_text()
    )
    assert found
    assert float(found[1]) < 1e-3  # another schedule of the learning rate would show


def test_a_way_that_computes_something_else_is_an_error(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FrozenTeacher(IJEPAStep):
        def step(self, *batch: Any, **rates: Any) -> Tensor:
            return super().step(*batch, **{**rates, "momentum": 1.0})

    monkeypatch.setattr(demo, "IJEPAStep", FrozenTeacher)
    console = Console(record=True, width=110, file=io.StringIO())
    output = tmp_path / "report.html"
    assert run(Demo(output, data=pictures, device="cpu"), console) == 1
    assert "float32: the losses disagree from step 2 on" in console.export_text()
    assert "The losses do not agree." in output.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Demo(steps=2), "--steps: expected at least 4, got 2"),
        (Demo(Path("no/such/folder/report.html")), "--output: no/such/folder is not a folder"),
        (Demo(data=Path("no/such/folder")), "data: no such file or folder: no/such/folder"),
    ],
)
def test_bad_input_is_named(config: Demo, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(config, Console(quiet=True))
