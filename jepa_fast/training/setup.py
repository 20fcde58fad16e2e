"""What a run needs before its first step; everything here refuses bad input by the name of its field."""

import copy
import math
import os
import shutil
import tempfile
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from jepa_fast import weights
from jepa_fast.data import SPLITS, Source, open_source
from jepa_fast.data.augment import least_edge
from jepa_fast.models import LeJEPA
from jepa_fast.training import schedules
from jepa_fast.training.checkpoint import latest_checkpoint, list_checkpoints, load_optimizer
from jepa_fast.training.config import PUBLISHED_WARMUP, TrainConfig
from jepa_fast.training.log import METRICS_NAME
from jepa_fast.training.systems import System
from jepa_fast.training.world import World

MAX_AUTO_WORKERS = 8

# Weights, two moments of the optimizer, and the teacher, each at most as large as the model.
CHECKPOINT_PER_MODEL = 4


def choose_device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device: cuda was asked for, but PyTorch finds no CUDA device")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def choose_precision(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"


def choose_workers(number: int | None, device: torch.device) -> int:
    if number is not None:
        return number
    return min(MAX_AUTO_WORKERS, os.cpu_count() or 1) if device.type == "cuda" else 0


def open_data(config: TrainConfig, system: System) -> Source:
    return open_source(
        config.data,
        short_side=math.ceil(least_edge(system.kinds)),
        frames=system.frames,
        frame_stride=config.frame_stride,
        frame_memory=config.frame_memory << 20,
    )


def training_part(config: TrainConfig, source: Source) -> list[int]:
    """The samples to train on: where the source has splits, those of its training part."""
    if config.split == "all" or source.splits is None:
        return list(range(len(source)))
    part = (source.splits == SPLITS.index("train")).nonzero().flatten().tolist()
    if not part:
        raise ValueError(f"split: expected all, as {config.data} has no training part, got train")
    return part


def make_plan(config: TrainConfig, *, system: System, samples: int) -> dict[str, Any]:
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
    after = schedules.scaled_steps(total_steps, config.schedule_scale) - warmup_steps
    if config.decay_steps is not None and config.decay_steps > after:
        raise ValueError(
            f"decay_steps: expected at most {after}, the steps of the schedule after the warm-up, "
            f"got {config.decay_steps}"
        )
    return {
        "model": config.model,
        "model_options": dict(config.model_options),
        "image_size": system.image_size,
        "frames": system.frames if hasattr(system.model.config, "frames") else None,
        "frame_stride": config.frame_stride,
        "local_size": system.kinds[1].size if len(system.kinds) > 1 else None,
        "views": [list(astuple(kind)) for kind in system.kinds],
        "min_keep": config.min_keep,
        "ragged": config.ragged,
        "sigreg_weight": config.sigreg_weight,
        "sigreg_slices": config.sigreg_slices,
        "context_loss_start": config.context_loss_start,
        "context_loss_end": config.context_loss_end,
        "context_loss_weighting": config.context_loss_weighting,
        "batch_size": config.batch_size,
        "precision": choose_precision(config.precision, choose_device(config.device)),
        "weights": None if config.weights is None else str(config.weights),
        "max_norm": config.max_norm,
        "max_norm_start": config.max_norm_start,
        "seed": config.seed,
        "steps": total_steps,
        "warmup_steps": warmup_steps,
        "start_lr": config.start_lr,
        "lr": config.lr,
        "decay": config.decay,
        "decay_steps": config.decay_steps,
        "final_lr": config.final_lr,
        "weight_decay": config.weight_decay,
        "final_weight_decay": config.final_weight_decay,
        "momentum": config.momentum,
        "final_momentum": config.final_momentum,
        "schedule_scale": config.schedule_scale,
    }


def checkpoint_to_resume(config: TrainConfig) -> Path | None:
    if config.resume is None:
        return None
    if config.resume != "latest":
        return Path(config.resume)
    if config.output is None:
        raise ValueError("resume: latest is looked for in the output folder, and there is none")
    return latest_checkpoint(config.output)


class Start(NamedTuple):
    """What a run begins with beside the weights of its model; each is None where there is none.

    teacher: the target encoder. optimizer: the state of an optimizer of the same parameters.
    """

    teacher: nn.Module | None = None
    optimizer: dict[str, Any] | None = None


def read_weights(path: Path, model: nn.Module) -> Start:
    """Reads a file of `jepa_fast.weights`, or the latest checkpoint in a folder, into `model`, in place.

    As the published cool-downs do, the run goes on with the optimizer that the checkpoint holds.

    Raises ValueError or FileNotFoundError, naming the field and what does not fit.
    """
    teacher = None if isinstance(model, LeJEPA) else copy.deepcopy(model.get_submodule("encoder"))
    try:
        path = latest_checkpoint(path) if path.is_dir() else path
        weights.load(model, path, teacher=teacher)
        return Start(teacher, load_optimizer(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"weights: {error}") from None
    except ValueError as error:
        raise ValueError(f"weights: {error}") from error


def data_identity(source: Source, samples: int) -> dict[str, Any]:
    return {"samples": samples, "fingerprint": source.fingerprint}


def check_world(config: TrainConfig, world: World) -> None:
    """Refuses a batch that the processes, and the parts of a step, cannot share evenly."""
    if config.batch_size % (world.size * config.accumulate):
        raise ValueError(
            f"batch_size: expected a multiple of {world.size} processes times accumulate = {config.accumulate}, "
            f"got {config.batch_size}"
        )
    if config.cuda_graph and (world.device.type != "cuda" or world.size > 1):
        raise ValueError(f"cuda_graph: expected one process on CUDA, got {world.size} on {world.device.type}")


def check_parts(config: TrainConfig, system: System, world: World) -> None:
    """Refuses parts of a batch with one image, of which LeJEPA's statistics say nothing."""
    parts = world.size * config.accumulate
    if isinstance(system.model, LeJEPA) and config.batch_size < 2 * parts:
        raise ValueError(
            f"batch_size: expected at least {2 * parts}, 2 images for each of {world.size} processes times accumulate "
            f"= {config.accumulate} parts, got {config.batch_size}"
        )


# Fields that checkpoints did not always have; the runs of those without did what the default is.
SINCE = (
    "context_loss_weighting", "decay", "decay_steps", "schedule_scale", "max_norm_start", "weights",
)  # fmt: skip


def check_same_run(
    saved: dict[str, Any], plan: dict[str, Any], identity: dict[str, Any], source: Path
) -> None:
    """Refuses to continue the checkpoint `saved`, read from `source`, with another plan or other data."""
    known = {name: getattr(TrainConfig, name) for name in SINCE} | saved["plan"]
    for name, value in plan.items():
        before = known.get(name)
        if name in known and _plain(before) != _plain(value):
            raise ValueError(f"{name}: {source} was trained with {before!r}, got {value!r}")
    if saved["data"] != identity:
        before, now = saved["data"]["samples"], identity["samples"]
        raise ValueError(f"data: {source} was trained on {before} samples, got {now} others")


def _plain(value: Any) -> Any:
    """Tuples as lists, as a checkpoint may hold either."""
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def check_output(folder: Path, source: Path | None) -> None:
    """Makes the output folder; refuses one that cannot be written, or holds a run that `source` is no checkpoint of."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output: {folder} cannot be written: {error.strerror}") from error
    checkpoints = list_checkpoints(folder)
    if source and any(source.samefile(path) for path in checkpoints):
        return
    if checkpoints or (folder / METRICS_NAME).exists():
        raise ValueError(
            f"output: {folder} already holds a run; resume one of its checkpoints, or choose another folder"
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
