"""A small folder of pictures, a small model, and a training step that only notes what it is given."""

import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from jepa_fast import models
from jepa_fast.masks import Masks
from jepa_fast.training import loop
from jepa_fast.training.config import TrainConfig

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures: two batches of four per epoch, and two left over."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((96, 72), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def config(pictures: Path, tmp_path: Path) -> MakeConfig:
    """Six steps, so three epochs, of four crops of 80 pixels."""

    def make(**changes: Any) -> TrainConfig:
        small: dict[str, Any] = {
            "data": str(pictures), "model": "ijepa_vitt8_128", "image_size": 80, "batch_size": 4, "steps": 6,
            "device": "cpu", "output": tmp_path / "run",
        }  # fmt: skip
        return TrainConfig(**(small | changes))

    return make


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 16 frames."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    folder = tmp_path_factory.mktemp("clips")
    for number in range(3):
        rng = np.random.default_rng(number)
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 80, "yuv420p"
            for place in range(16):
                pixels = np.kron(
                    rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8)
                )
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = place, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return folder


class NotingStep:
    """Notes its inputs; the loss and the weight are functions of them and of the weight."""

    def __init__(self, model: torch.nn.Module, *, precision: str) -> None:
        self.model = model
        self.precision = precision
        self.weight = torch.ones((), dtype=torch.float64)
        self.calls: list[dict[str, Any]] = []

    def step(self, pixels: torch.Tensor, masks: Masks, **rates: float) -> torch.Tensor:
        self.calls.append({"pixels": pixels, "masks": masks, **rates})
        mean = pixels.double().mean() + masks.context.double().mean()
        self.weight = self.weight * 0.9 + rates["lr"] * mean + torch.rand((), dtype=torch.float64)
        return (self.weight * mean).float()

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]


@pytest.fixture
def noting_step() -> type[NotingStep]:
    return NotingStep


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def train_small(config: MakeConfig, small_model: None, log: io.StringIO) -> Callable[..., Any]:
    """Trains the small model with the given changes to `config`."""
    return lambda **changes: loop.train(config(**changes), console=Console(file=log, width=200))


@pytest.fixture
def train_noting(config: MakeConfig, small_model: None, log: io.StringIO) -> Callable[..., Any]:
    """The same with a `NotingStep`, or the `step_factory` given, in place of the training step."""

    def train(step_factory: Any = NotingStep, **changes: Any) -> loop.TrainResult:
        return loop.train(config(**changes), step_factory=step_factory, console=Console(file=log, width=200))

    return train


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every model with one block each in encoder and predictor; on one thread, as so little work needs."""
    create = models.create
    small = {"depth": 1, "predictor_depth": 1, "predictor_dim": 96}
    monkeypatch.setattr(models, "create", lambda name, **options: create(name, **small, **options))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
