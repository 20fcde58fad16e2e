"""`jepa-fast train CONFIG`: a TOML file of the options, which the command line overrides."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jepa_fast.commands.main import main
from jepa_fast.commands.train import TERMINATED, Train, from_file
from jepa_fast.training.checkpoint import list_checkpoints, load_checkpoint
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.config_file import read_config


@pytest.fixture
def toml(tmp_path: Path, pictures: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(
        f'data = "{pictures}"\nmodel = "ijepa_vitt8_128"\nimage_size = 80\nbatch_size = 4\nsteps = 2\n'
        f'device = "cpu"\nlog_every = 1\nlr = 1\ncrop_scale = [0.5, 1]\noutput = "{tmp_path / "run"}"\n'
        "[model_options]\ndepth = 1\npredictor_depth = 1\npredictor_dim = 96\n"
    )
    return path


def exit_code(arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


def test_every_kind_of_value(toml: Path, tmp_path: Path) -> None:
    config = read_config(toml, TrainConfig)
    assert config.model_options == {"depth": 1, "predictor_depth": 1, "predictor_dim": 96}
    assert (config.lr, config.crop_scale, config.output) == (1.0, (0.5, 1.0), tmp_path / "run")
    assert config.weight_decay == TrainConfig().weight_decay


def test_the_command_line_comes_before_the_file(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["train", str(toml), "--steps", "3", "--lr", "1e-3"]) == 0
    assert capsys.readouterr().out.startswith("3 steps in ")


@pytest.mark.parametrize(
    "arguments",
    [["a.toml"], ["--steps", "3", "a.toml"], ["--compile", "a.toml"], ["a.toml", "--data", "b.toml"]],
)
def test_where_the_file_may_stand(toml: Path, arguments: list[str]) -> None:
    path = toml.rename(toml.with_name("a.toml"))
    found = from_file([str(path) if part == "a.toml" else part for part in arguments])
    assert found is not None
    assert found.config == path


def test_without_a_file_the_defaults_hold() -> None:
    assert from_file(["--steps", "3"]) is None
    assert Train().config is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "batchsize = 4",
            r"config: .*small.toml: expected one of data, .*, got 'batchsize'; did you mean 'batch_size'",
        ),
        (
            "precision = 'bf16'",
            r"precision: expected auto or float32 or bfloat16 or .*, got 'bf16' \(in .*small.toml",
        ),
        ("precision = 16", r"precision: .*small.toml: Expected `str`, got `int`"),
        ("batch_size = 'four'", r"batch_size: .*small.toml: Expected `int`, got `str`"),
        ("output = 4", r"output: .*small.toml: "),
        ("lr = -1.0", r"lr: expected a finite number, 0 or more, got -1.0 \(in .*small.toml\)"),
        ("lr = ", r"config: .*small.toml cannot be read as TOML: "),
    ],
)
def test_bad_files_are_one_line(
    toml: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    toml.write_text(text)
    assert exit_code(["train", str(toml)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    import re

    assert re.match(f"jepa-fast: error: {message}", line), line


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["train", "gone.toml"]) == 2
    assert capsys.readouterr().err == "jepa-fast: error: config: no such file: gone.toml\n"


def test_sigterm_writes_a_checkpoint_and_says_so(toml: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "jepa_fast.commands.main", "train", str(toml), "--steps", "10000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() or "\n" not in metrics.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == TERMINATED
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    done: Any = load_checkpoint(checkpoint)["step"]
    assert errors.splitlines()[-1] == f"SIGTERM: stopped after step {done}; checkpoint: {checkpoint}"
