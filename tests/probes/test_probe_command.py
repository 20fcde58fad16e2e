"""`jepa-fast probe`, from the command line to the table, on checkpoints of `jepa-fast train`."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_fast.commands.main import main
from jepa_fast.data import open_source
from jepa_fast.probes.features import extract, load_frozen
from jepa_fast.probes.run import split_indices
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.loop import train

COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]
SMALL = {"depth": 2, "predictor_depth": 1, "predictor_dim": 96}
VJEPA21 = {
    "dim": 48, "depth": 4, "num_heads": 2, "mlp_dim": 96, "predictor_depth": 1, "predictor_dim": 48,
    "predictor_heads": 2,
}  # fmt: skip
LEJEPA = {
    "dim": 48,
    "depth": 2,
    "num_heads": 3,
    "mlp_dim": 96,
    "embed_dim": 24,
    "hidden_dim": 32,
    "proj_dim": 8,
}


def write(path: Path, number: int = 60, *, damaged: int | None = None, **others: Any) -> Path:
    """Noisy pictures of three colours."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(number):
        noise = rng.normal(0, 20, (40, 48, 3)) + COLOURS[i % 3]
        out = io.BytesIO()
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(out, "PNG")
        files.append(out.getvalue() if i != damaged else b"")
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(path, image_bytes=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, **others)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = np.arange(60) % 3
    splits = np.repeat([0, 1, 2], [36, 9, 15])
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    return write(path, label=labels, coarse_label=labels // 2, split=splits, damaged=50)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two steps of each system."""
    folder = tmp_path_factory.mktemp("runs")
    models: dict[str, dict[str, Any]] = {
        "ijepa": {"model": "ijepa_vitt8_128", "model_options": SMALL, "image_size": 80},
        "lejepa": {
            "model": "lejepa_vits8_128", "model_options": LEJEPA, "image_size": 32, "local_size": 16,
            "local_views": 1, "sigreg_slices": 16,
        },
        "images": {"model": "vjepa21_vitg_256", "model_options": VJEPA21, "image_size": 64, "frames": 1},
    }  # fmt: skip
    for name, options in models.items():
        train(
            TrainConfig(data=str(data), device="cpu", batch_size=6, steps=2, output=folder / name, **options)
        )
    return {name: folder / name for name in models}


def call(arguments: list[Any]) -> object:
    with pytest.raises(SystemExit) as stop:
        main(["probe", *map(str, arguments)])
    return stop.value.code


@pytest.mark.parametrize("name", ["ijepa", "lejepa", "images"])
def test_colours_are_told_apart(
    runs: dict[str, Path], data: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sheet = tmp_path / "scores.json", tmp_path / "features.png"
    options = [
        "--data",
        data,
        "--epochs",
        2,
        "--output",
        out,
        "--pictures",
        sheet,
        "--layers",
        2,
        "--device",
        "cpu",
    ]
    assert call([runs[name], *options]) == 0
    text = capsys.readouterr().out
    network = "encoder" if name == "lejepa" else "teacher"
    assert f"{network} after 2 steps; 3 classes; samples: 36 train, 9 val, 14 test" in text
    assert "skipped: 1 samples that cannot be read" in text
    for method in (
        "linear probe",
        "attentive probe",
        "nearest neighbours",
        "raw pixels",
        "most frequent class",
    ):
        assert method in text
    report = json.loads(out.read_text())
    assert report["scores"]["linear"]["test"] > 0.9
    assert report["scores"]["pixels"]["test"] > 0.9
    assert report["skipped"] == 1
    assert Image.open(sheet).size == (8 * 128, 2 * 128)


def test_the_features_are_the_encoders(runs: dict[str, Path], data: Path) -> None:
    frozen = load_frozen(runs["ijepa"], network="encoder", image_size=None, device=torch.device("cpu"))
    source = open_source(data, short_side=80)
    found = extract(frozen, source, [3, 50, 1], layers=1, tokens=True)
    assert found.indices.tolist() == [3, 1]  # 50 is damaged
    assert found.tokens is not None
    alone = frozen.encoder(found.pixels.view(2, 3, 80, 80))
    torch.testing.assert_close(found.tokens.float(), alone, atol=5e-3, rtol=5e-3)
    assert found.pooled.shape == (2, 192)


def test_the_labels_can_be_chosen(runs: dict[str, Path], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    options = [
        "--data",
        data,
        "--label",
        "coarse_label",
        "--methods",
        "knn",
        "--output",
        out,
        "--device",
        "cpu",
    ]
    assert call([runs["ijepa"], *options]) == 0
    assert json.loads(out.read_text())["classes"] == 2


def test_pictures_need_no_labels(runs: dict[str, Path], tmp_path: Path) -> None:
    data = write(tmp_path / "plain.npz", 12)
    sheet = tmp_path / "features.png"
    assert call([runs["ijepa"], "--data", data, "--methods", "--pictures", sheet, "--device", "cpu"]) == 0
    assert sheet.exists()


def test_splits_are_drawn_where_there_are_none(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.npz", 30, label=np.arange(30) % 3), short_side=8)
    parts = split_indices(source, 0)
    assert [len(part) for part in parts] == [24, 3, 3]
    assert sorted(index for part in parts for index in part) == list(range(30))
    assert split_indices(source, 0) == parts
    assert split_indices(source, 1) != parts


def test_several_draws_are_averaged(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "a.npz", 30, label=np.arange(30) % 3)
    out = tmp_path / "scores.json"
    arguments = [runs["ijepa"], "--data", data, "--methods", "knn", "--device", "cpu", "--output", out]
    alone = []
    for seed in (4, 5, 6):
        assert call([*arguments, "--seed", seed]) == 0
        alone.append(json.loads(out.read_text()))
    capsys.readouterr()
    assert call([*arguments, "--seed", 4, "--draws", 3]) == 0
    found = json.loads(out.read_text())
    tests = [report["scores"]["knn"]["test"] for report in alone]
    assert found["scores"]["knn"]["tests"] == tests
    for name in ("train", "val", "test"):
        mean = np.mean([report["scores"]["knn"][name] for report in alone])
        assert found["scores"]["knn"][name] == pytest.approx(mean)
    assert found["majority"] == pytest.approx(np.mean([report["majority"] for report in alone]))
    text = capsys.readouterr().out
    assert f"{100 * np.mean(tests):.1f} ± {100 * np.std(tests, ddof=1):.1f} %" in text
    assert "in each of 3 draws" in text


def test_a_group_is_never_split(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.npz", 30, label=np.arange(30) % 3), short_side=8)
    source.groups = torch.arange(30) // 2
    for splits in (None, torch.arange(30) // 2 % 3):
        source.splits = splits
        parts = split_indices(source, 0)
        assert sorted(index for part in parts for index in part) == list(range(30))
        assert len({frozenset(index // 2 for index in part) for part in parts}) == 3
        assert sum(len({index // 2 for index in part}) for part in parts) == 15
        if splits is not None:
            assert [splits[part].unique().tolist() for part in parts] == [[0], [1], [2]]


def test_clips_are_those_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every second frame, as trained; each clip forward and backward."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    (tmp_path / "clips").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)
        with av.open(str(tmp_path / "clips" / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for picture in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    options: dict[str, Any] = {
        "dim": 48, "depth": 4, "num_heads": 2, "mlp_dim": 96, "predictor_depth": 1, "predictor_dim": 48,
        "predictor_heads": 2,
    }  # fmt: skip
    train(
        TrainConfig(
            data=str(tmp_path / "clips"), model="vjepa2_vitl_256", model_options=options, image_size=64, frames=4,
            frame_stride=2, device="cpu", batch_size=4, steps=1, output=tmp_path / "run",
        )
    )  # fmt: skip
    arguments = [tmp_path / "run", "--data", tmp_path / "clips", "--methods", "knn", "--device", "cpu"]
    assert call([*arguments, "--label", "arrow_of_time"]) == 0
    # 4 videos of 24 frames: 3 clips of 4 in every second frame, twice; 80 and 10 % of 12 clips.
    assert (
        "teacher after 1 steps; 2 classes; samples: 20 train, 2 val, 2 test (drawn" in capsys.readouterr().out
    )
    assert call([*arguments, "--label", "file"]) == 0
    assert "4 classes; samples: 10 train, 1 val, 1 test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "gone.safetensors"}, "no such checkpoint: gone.safetensors"),
        ({"data": "gone.npz"}, "data: no such file or folder: gone.npz"),
        (
            {"label": "colour"},
            r"label: expected one of the labels in .* (coarse_label, label), got colour",
        ),
        ({"plain": True}, "data: expected labels, got none in "),
        ({"network": "teacher", "run": "lejepa"}, "network: expected one of those in "),
        ({"layers": "0"}, "layers: expected 1 or more, got 0"),
        ({"draws": "0"}, "draws: expected 1 or more, got 0"),
        ({"draws": "2"}, "draws: expected 1, as  .* has splits of its own, got 2"),
    ],
)
def test_bad_input_is_one_line(
    runs: dict[str, Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    message: str,
) -> None:
    if options.get("plain"):
        data = write(tmp_path / "plain.npz", 12)
    arguments = [
        options.get("checkpoint", runs[options.get("run", "ijepa")]),
        "--data",
        options.get("data", data),
    ]
    for name in ("label", "network", "layers", "draws"):
        arguments += [f"--{name}", options[name]] if name in options else []
    assert call([*arguments, "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    start, _, rest = message.partition(" .* ")
    assert line.startswith(f"jepa-fast: error: {start}")
    assert rest in line


@pytest.mark.parametrize(
    ("labels", "splits", "got"),
    [([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 2], "4 of 1"), ([0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 2, 2], "1 of 1")],
)
@pytest.mark.parametrize("method", ["linear", "knn"])
def test_one_class_or_one_sample_to_train_on_is_refused(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[int],
    splits: list[int], got: str, method: str,
) -> None:  # fmt: skip
    path = write(tmp_path / "few.npz", 6, label=np.array(labels), split=np.array(splits))
    assert call([runs["ijepa"], "--data", path, "--methods", method, "--device", "cpu"]) == 2
    expected = f"data: expected training samples of 2 or more classes in {path}, got {got}"
    assert capsys.readouterr().err == f"jepa-fast: error: {expected}\n"


def test_a_file_of_other_weights_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert call([tmp_path / "a.safetensors", "--data", data]) == 2
    assert "a.safetensors: weights alone, not a jepa_fast checkpoint" in capsys.readouterr().err
