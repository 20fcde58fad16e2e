"""`jepa-fast train`: where its configuration comes from."""

from pathlib import Path

import pytest

from jepa_fast.commands import main as entry
from jepa_fast.commands.train import Train


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Train]:
    """What the command was given to run."""
    configs: list[Train] = []

    def run(config: Train) -> int:
        configs.append(config)
        return 0

    monkeypatch.setitem(entry.COMMANDS, "train", (Train, run))
    return configs


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "conf.cfg"
    path.write_text("batch_size = 7\n[model_options]\ndepth = 3\n")
    return path


def call(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        entry.main(["train", *map(str, arguments)])
    return stop.value.code


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--steps", "2", "--output", "runs/z"),
        ("--steps=2",),
        ("--crop_scale", "0.3", "0.9"),
        ("--compile",),
        ("--model-options", "depth", "1"),
    ],
)
def test_config_of_any_name_is_read_behind_any_option(
    seen: list[Train], config: Path, options: tuple[str, ...]
) -> None:
    assert call(*options, config) == 0
    assert (seen[0].config, seen[0].batch_size) == (config, 7)


def test_a_folder_is_no_config(seen: list[Train], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--steps", "2", tmp_path) == 2
    assert f"error: config: {tmp_path} cannot be read as TOML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--model-options", "depth", "1", "dim", "96"), {"depth": 1, "dim": 96}),
        (("--model_options", "dim", "96", "--steps", "3"), {"dim": 96}),
        (("--model-options.depth", "1", "--model-options.dim=96"), {"depth": 1, "dim": 96}),
    ],
)
@pytest.mark.parametrize("with_file", [True, False])
def test_model_options(
    seen: list[Train], config: Path, options: tuple[str, ...], expected: dict[str, int], with_file: bool
) -> None:
    assert call(*options, *([config] if with_file else [])) == 0
    assert seen[0].model_options == ({"depth": 3} if with_file else {}) | expected
    assert seen[0].batch_size == (7 if with_file else Train.batch_size)


@pytest.mark.parametrize(
    ("words", "got"),
    [((), "nothing"), (("depth",), "depth"), (("depth", "x"), "depth x"), (("depth", "1.5"), "depth 1.5")],
)
def test_bad_model_options_are_one_line(
    seen: list[Train], words: tuple[str, ...], got: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--model-options", *words) == 2
    expected = "--model-options: expected FIELD NUMBER ..., such as depth 6 dim 192, got "
    assert capsys.readouterr().err == f"jepa-fast: error: {expected}{got}\n"
    assert not seen
