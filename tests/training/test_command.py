"""`jepa-fast train`, from the command line to the summary."""

from pathlib import Path
from typing import Any

import pytest

from jepa_fast.commands import train as command
from jepa_fast.commands.errors import UsageError
from jepa_fast.commands.main import main
from jepa_fast.commands.train import Train, run

pytestmark = pytest.mark.usefixtures("small_model")


@pytest.fixture
def arguments(pictures: Path, tmp_path: Path) -> list[str]:
    options = {
        "--data": pictures, "--model": "ijepa_vitt8_128", "--image-size": 80, "--batch-size": 4,
        "--steps": 2, "--device": "cpu", "--output": tmp_path / "run",
    }  # fmt: skip
    return ["train", *(str(part) for option in options.items() for part in option)]


def exit_code(arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


def test_it_trains_and_says_what_it_did(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(arguments) == 0
    summary = capsys.readouterr().out
    assert summary.startswith("2 steps in ")
    assert summary.endswith(f"checkpoint: {tmp_path / 'run' / 'step_00000002.safetensors'}\n")
    assert exit_code([*arguments, "--resume", "latest"]) == 0
    assert capsys.readouterr().out.startswith("nothing left to do")


def test_the_eager_engine_is_the_published_formulation(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Any] = []
    factory = command._eager_step()

    def note(model: Any, **options: Any) -> Any:
        made.append(factory(model, **options))
        return made[-1]

    monkeypatch.setattr(command, "_eager_step", lambda: note)
    assert exit_code([*arguments, "--engine", "eager"]) == 0
    assert [type(step).__name__ for step in made] == ["EagerIJEPAStep"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--image-size", "65", "image_size: expected a multiple of patch_size = 8, got 65"),
        ("--data", "/no/such/folder", "data: no such file or folder: /no/such/folder"),
        ("--batch-size", "11", "batch_size: expected at most 10, the samples in data, got 11"),
        ("--resume", "gone.safetensors", "no such checkpoint: gone.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], option: str, value: Any, message: str
) -> None:
    assert exit_code([*arguments, option, value]) == 2
    assert capsys.readouterr().err == f"jepa-fast: error: {message}\n"


def test_a_value_out_of_range_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([*arguments, "--log-every", "0"]) == 2
    assert "log_every: expected 1 or more, got 0" in capsys.readouterr().err


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*inputs: Any, **options: Any) -> None:
        raise ModuleNotFoundError("No module named 'av'", name="av")

    monkeypatch.setattr("jepa_fast.training.loop.train", fail)
    with pytest.raises(UsageError, match=r"av is not installed; `pip install 'jepa-fast\[data\]'` brings it"):
        run(Train())


def test_help_names_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--image-size PIXELS Side of the training crops. (default: the model's own)" in text
    assert (
        "--warmup-steps STEPS Steps in which the learning rate rises. (default: 40/300 of the steps" in text
    )
    assert "None" not in text.replace("None writes nothing", "")
