"""What a run needs before its first step; everything here refuses bad input by the name of its field."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from jepa_fast import models
from jepa_fast.data import CropDataset, open_folder, sample_clips_folder
from jepa_fast.masks import MultiBlockMasks
from jepa_fast.models import IJEPA
from jepa_fast.training.checkpoint import latest_checkpoint, list_checkpoints
from jepa_fast.training.config import PUBLISHED_WARMUP, TrainConfig
from jepa_fast.training.log import METRICS_NAME
from jepa_fast.training.step import Precision

MAX_AUTO_WORKERS = 8

# Weights, two moments of the optimizer, and the teacher, each at most as large as the model.
CHECKPOINT_PER_MODEL = 4


def choose_device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device: cuda was asked for, but PyTorch finds no CUDA device")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def choose_precision(name: Literal["auto", "float32", "bfloat16"], device: torch.device) -> Precision:
    if name != "auto":
        return name
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"


def choose_workers(number: int | None, device: torch.device) -> int:
    if number is not None:
        return number
    return min(MAX_AUTO_WORKERS, os.cpu_count() or 1) if device.type == "cuda" else 0


def make_model(config: TrainConfig) -> IJEPA:
    if config.model not in models.names():
        raise ValueError(f"model: expected one of {', '.join(models.names())}, got {config.model}")
    overrides = {} if config.image_size is None else {"image_size": config.image_size}
    return models.create(config.model, **overrides)


def make_masks(model: IJEPA) -> MultiBlockMasks:
    try:
        return MultiBlockMasks(model.config.image_size // model.config.patch_size)
    except ValueError as error:  # about the grid, which the image size decides
        raise ValueError(f"image_size: {model.config.image_size} is too small: {error}") from error


def open_data(config: TrainConfig, image_size: int) -> CropDataset:
    return open_folder(
        sample_clips_folder() if config.data == "sample" else config.data,
        image_size=image_size,
        seed=config.seed,
        frame_stride=config.frame_stride,
        frame_memory=config.frame_memory << 20,
    )


def make_plan(config: TrainConfig, *, image_size: int, samples: int) -> dict[str, Any]:
    """All that decides what is computed, apart from the data: what a resumed run must have in common."""
    if config.batch_size > samples:
        raise ValueError(
            f"batch_size: expected at most {samples}, the samples in data, got {config.batch_size}"
        )
    total_steps = config.steps or config.epochs * (samples // config.batch_size)
    warmup_steps = config.warmup_steps
    if warmup_steps is None:
        warmup_steps = round(PUBLISHED_WARMUP * total_steps)
    if warmup_steps > total_steps:
        raise ValueError(
            f"warmup_steps: expected at most {total_steps}, the steps in all, got {warmup_steps}"
        )
    return {
        "model": config.model,
        "image_size": image_size,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "steps": total_steps,
        "warmup_steps": warmup_steps,
        "start_lr": config.start_lr,
        "lr": config.lr,
        "final_lr": config.final_lr,
        "weight_decay": config.weight_decay,
        "final_weight_decay": config.final_weight_decay,
        "momentum": config.momentum,
        "final_momentum": config.final_momentum,
    }


def checkpoint_to_resume(config: TrainConfig) -> Path | None:
    if config.resume is None:
        return None
    if config.resume != "latest":
        return Path(config.resume)
    if config.output is None:
        raise ValueError("resume: latest is looked for in the output folder, and there is none")
    return latest_checkpoint(config.output)


def data_identity(dataset: CropDataset) -> dict[str, Any]:
    return {"samples": len(dataset), "fingerprint": dataset.fingerprint}


def check_same_run(
    saved: dict[str, Any], plan: dict[str, Any], identity: dict[str, Any], source: Path
) -> None:
    """Refuses to continue the checkpoint `saved`, read from `source`, with another plan or other data."""
    for name, value in plan.items():
        before = saved["plan"].get(name)
        if before != value:
            raise ValueError(f"{name}: {source} was trained with {before!r}, got {value!r}")
    if saved["data"] != identity:
        before, now = saved["data"]["samples"], identity["samples"]
        raise ValueError(f"data: {source} was trained on {before} samples, got {now} others")


def check_output(folder: Path, source: Path | None) -> None:
    """Makes the output folder; refuses one that cannot be written, or holds a run other than `source`'s."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output: {folder} cannot be written: {error.strerror}") from error
    checkpoints = list_checkpoints(folder)
    if source and checkpoints and source.samefile(checkpoints[-1]):
        return
    if checkpoints or (folder / METRICS_NAME).exists():
        raise ValueError(
            f"output: {folder} already holds a run; resume its latest checkpoint, or choose another folder"
        )


def check_free_space(folder: Path, model: nn.Module, keep: int) -> None:
    """Refuses an output folder without room for the checkpoints to keep and the one being written."""
    model_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    missing = keep + 1 - min(keep, len(list_checkpoints(folder)))
    needed = CHECKPOINT_PER_MODEL * model_bytes * missing
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"output: expected {needed / 1e9:.1f} GB of free space for {missing} more checkpoints, "
            f"got {free / 1e9:.1f} GB on the disk of {folder}"
        )
