"""Bad configurations are refused before anything is trained, by the name of the field."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_fast.training import setup
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.loop import train
from jepa_fast.training.systems import make_system

MakeConfig = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("image_size", 0, "1 or more"),
        ("frame_stride", 0, "1 or more"),
        ("frame_memory", -1, "0 or more"),
        ("batch_size", 0, "1 or more"),
        ("steps", 0, "1 or more"),
        ("epochs", 0, "1 or more"),
        ("warmup_steps", -1, "0 or more"),
        ("decay_steps", -1, "0 or more"),
        ("context_loss_weighting", "depth", "distance or uniform"),
        ("decay", "exponential", "cosine or linear"),
        ("schedule_scale", 0.99, "1 to 1000"),
        ("schedule_scale", float("inf"), "1 to 1000"),
        ("schedule_scale", float("nan"), "1 to 1000"),
        ("workers", -1, "0 or more"),
        ("checkpoint_every", 0, "1 or more"),
        ("keep_checkpoints", 0, "1 or more"),
        ("log_every", 0, "1 or more"),
        ("lr", -1e-3, "a finite number, 0 or more"),
        ("start_lr", float("nan"), "a finite number, 0 or more"),
        ("final_lr", float("inf"), "a finite number, 0 or more"),
        ("weight_decay", -0.1, "a finite number, 0 or more"),
        ("momentum", 1.5, "0 to 1"),
        ("final_momentum", float("nan"), "0 to 1"),
        ("seed", -1, "0 to 2**63 - 1"),
        ("precision", "float16", "auto or float32 or bfloat16 or pure_bfloat16"),
        ("parallel", "tp", "ddp or fsdp"),
        ("nonfinite", "ignore", "stop or skip"),
        ("split", "test", "train or all"),
        ("accumulate", 3, "a divisor of batch_size = 16"),
        ("max_norm", 0.0, "a finite number above 0"),
        ("max_norm_start", -1, "0 or more"),
        ("max_norm_start", 5, "0 without max_norm"),
        ("crop_scale", (0.0, 1.0), "0 < low <= high <= 1"),
        ("crop_ratio", (1.5, 0.75), "0 < low <= high, finite"),
        ("flip", 1.5, "0 to 1"),
        ("device", "tpu", "auto or cpu or cuda"),
        ("engine", "slow", "fast or eager"),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        TrainConfig(**{field: value})
    assert str(error.value) == f"{field}: expected {expected}, got {value!r}"


@pytest.mark.parametrize(
    ("changes", "expected"), [({"accumulate": 2}, "accumulate = 1"), ({"ragged": True}, "ragged = false")]
)
def test_what_a_cuda_graph_cannot_capture_is_named(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=f"cuda_graph: expected {expected} with it, got True"):
        TrainConfig(cuda_graph=True, **changes)


def test_the_defaults_are_the_published_ones() -> None:
    config = TrainConfig()
    assert (config.start_lr, config.lr, config.final_lr) == (2e-4, 1e-3, 1e-6)
    assert (config.weight_decay, config.final_weight_decay) == (0.04, 0.4)
    assert (config.momentum, config.final_momentum) == (0.996, 1.0)
    config = TrainConfig(batch_size=2048, model="ijepa_vitt16")
    plan = setup.make_plan(config, system=make_system(config), samples=1_281_167)
    assert plan["image_size"] == 224
    assert plan["steps"] == 300 * 625
    assert plan["warmup_steps"] == 40 * 625


def refuse(config: TrainConfig, message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message):
        train(config)


@pytest.mark.usefixtures("small_model")
class TestRefusals:
    def test_unknown_model(self, config: MakeConfig) -> None:
        refuse(
            config(model="ijepa_vit8_128"),
            "model: expected one of ijepa_vitt8_128, .*, got 'ijepa_vit8_128'; did you mean 'ijepa_vitt8_128'",
        )

    def test_image_sizes_that_the_model_or_the_masks_cannot_have(self, config: MakeConfig) -> None:
        refuse(config(image_size=65), "image_size: expected a multiple of patch_size = 8, got 65")
        refuse(config(image_size=64), "image_size: 64 is too small: target_scale: ")

    def test_missing_data(self, config: MakeConfig, tmp_path: Path) -> None:
        refuse(config(data=str(tmp_path / "gone")), "data: no such file or folder: .*gone", FileNotFoundError)

    def test_more_images_in_a_batch_than_there_are(self, config: MakeConfig) -> None:
        refuse(config(batch_size=11), "batch_size: expected at most 10, the samples in data, got 11")

    def test_longer_warmup_than_training(self, config: MakeConfig) -> None:
        refuse(config(warmup_steps=7), "warmup_steps: expected at most 6, the steps in all, got 7")

    def test_longer_decay_than_its_schedule(self, config: MakeConfig) -> None:
        message = "decay_steps: expected at most {}, the steps of the schedule after the warm-up, got {}"
        refuse(config(warmup_steps=2, decay_steps=5), message.format(4, 5))
        refuse(config(warmup_steps=2, decay_steps=7, schedule_scale=1.25), message.format(5, 7))

    def test_eager_without_a_step_factory(self, config: MakeConfig) -> None:
        refuse(config(engine="eager"), "engine: eager needs a step_factory")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_cuda_where_there_is_none(self, config: MakeConfig) -> None:
        refuse(config(device="cuda"), "device: cuda was asked for, but PyTorch finds no CUDA device")

    def test_an_output_folder_that_cannot_be_made(self, config: MakeConfig, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        refuse(config(output=tmp_path / "file" / "run"), "output: .*run cannot be written: Not a directory")

    def test_an_output_folder_with_another_run(self, config: MakeConfig, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "step_00000006.safetensors").touch()
        refuse(
            config(),
            "output: .*run already holds a run; resume one of its checkpoints, or choose another folder",
        )

    def test_a_full_disk(self, config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage("/")._replace(free=1000)
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
        refuse(config(), r"output: expected \d+\.\d GB of free space for 4 more checkpoints, got 0.0 GB")


def test_nothing_is_trained_or_left_behind_by_a_refusal(
    config: MakeConfig, small_model: None, tmp_path: Path
) -> None:
    refuse(config(batch_size=11), "batch_size")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(("asked", "device", "chosen"), [(None, "cpu", 0), (3, "cpu", 3), (0, "cuda", 0)])
def test_workers(asked: int | None, device: str, chosen: int) -> None:
    assert setup.choose_workers(asked, torch.device(device)) == chosen


def test_workers_on_cuda_by_default() -> None:
    assert 1 <= setup.choose_workers(None, torch.device("cuda")) <= setup.MAX_AUTO_WORKERS


def test_precision_on_the_cpu() -> None:
    cpu = torch.device("cpu")
    assert [setup.choose_precision(name, cpu) for name in ("auto", "bfloat16")] == ["float32", "bfloat16"]


def test_the_data_is_opened_for_the_views_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(setup, "open_source", lambda data, **options: asked.append((data, options)))
    config = TrainConfig(
        data="photos", model="ijepa_vitt8_128", image_size=96, frame_stride=3, frame_memory=2
    )
    setup.open_data(config, make_system(config))
    # The smallest crop covers 0.3 of the area, 3 : 4 high.
    side = math.ceil(96 / math.sqrt(0.3 * 0.75))
    options = {"short_side": side, "frames": 1, "frame_stride": 3, "frame_memory": 2 << 20}
    assert asked == [("photos", options)]
