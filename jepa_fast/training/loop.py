"""The training loop: data, masks, schedules, one step after the other, checkpoints.

A run is a pure function of its configuration: the order of the data, the crops and the masks depend on
the seed and the step alone. A resumed run therefore continues bit for bit as if it had not stopped,
wherever in an epoch that was.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from jepa_fast.data import CropDataset, EpochBatches, normalize, stream_seed
from jepa_fast.masks import MultiBlockMasks
from jepa_fast.training import schedules, setup
from jepa_fast.training.checkpoint import checkpoint_path, load_checkpoint, prune_checkpoints, save_checkpoint
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.log import NonFiniteLossError, StepRecord, TrainingLog
from jepa_fast.training.step import IJEPAStep, TrainingStep

__all__ = ["NonFiniteLossError", "StepFactory", "TrainConfig", "TrainResult", "TrainingStep", "train"]


StepFactory = Callable[..., TrainingStep]  # called as factory(model, precision=...)


@dataclass(frozen=True)
class TrainResult:
    """What a run did."""

    step: TrainingStep
    """The training step with its trained weights."""
    first_step: int
    """The step, counted from 0, that `losses` starts at."""
    losses: list[float]
    """One per step."""
    seconds: float
    """Wall time of the steps, without checkpoints."""
    images_per_second: float
    skipped: list[tuple[Path, str]]
    """Files that could not be read, with the reason."""
    checkpoint: Path | None
    """The last one, if there is an output folder."""


def train(
    config: TrainConfig, *, step_factory: StepFactory | None = None, console: Console | None = None
) -> TrainResult:
    """Trains as `config` says. Seeds torch's global generators and draws from them.

    `step_factory(model, precision=...)` makes the training step, by default `IJEPAStep`. The log goes
    to `console`, by default standard error.

    Raises ValueError or FileNotFoundError, naming the field, before the first step when the
    configuration cannot be carried out; NonFiniteLossError when the loss becomes infinite or not a
    number (the last checkpoint is from before); OSError when a checkpoint cannot be written;
    KeyboardInterrupt on Ctrl-C, once the step is done and a checkpoint written.
    """
    if step_factory is None and config.engine != "fast":
        raise ValueError(f"engine: {config.engine} needs a step_factory")
    console = console or Console(stderr=True)
    device = setup.choose_device(config.device)
    source = setup.checkpoint_to_resume(config)
    saved = load_checkpoint(source, required=("step", "plan", "data", "training", "rng")) if source else None
    if config.output:
        setup.check_output(config.output, source)

    torch.manual_seed(config.seed)
    model = setup.make_model(config)
    masks = setup.make_masks(model)
    if config.output:
        setup.check_free_space(config.output, model, config.keep_checkpoints)
    dataset = setup.open_data(config, model.config.image_size)
    plan = setup.make_plan(config, image_size=model.config.image_size, samples=len(dataset))
    engine = (step_factory or IJEPAStep)(
        model.to(device), precision=setup.choose_precision(config.precision, device)
    )
    identity = setup.data_identity(dataset)
    start = 0
    if source and saved:
        setup.check_same_run(saved, plan, identity, source)
        start = saved["step"]
        engine.load_state_dict(saved["training"])
        _restore_rng(saved["rng"])

    if dataset.skipped:
        console.print(f"samples: {len(dataset)}, files skipped: {len(dataset.skipped)}", highlight=False)
    log = TrainingLog(
        config.output, start=start, total=plan["steps"], batch_size=config.batch_size, console=console
    )
    checkpoint = source
    # Worker processes are forked here, before the log draws its bar from a thread.
    batches = iter(_loader(config, dataset, device, start=start, stop=plan["steps"]))
    with log, _ctrl_c() as ctrl_c:
        waiting_since = time.monotonic()
        for done, images in enumerate(batches, start + 1):
            data_seconds = time.monotonic() - waiting_since
            record = _train_step(engine, plan, masks, images, done - 1, device)
            stopping = ctrl_c.is_set()
            last = done == plan["steps"] or stopping
            saving = config.output is not None and (last or done % config.checkpoint_every == 0)
            try:
                log.add(record, data_seconds)
                if last or saving or done % config.log_every == 0:
                    log.flush()
            except NonFiniteLossError as error:  # before the weights after it could be saved
                raise NonFiniteLossError(f"{error}; last checkpoint: {checkpoint}") from None
            if config.output and saving:
                checkpoint = checkpoint_path(config.output, done)
                state = {
                    "step": done,
                    "plan": plan,
                    "data": identity,
                    "training": engine.state_dict(),
                    "rng": _rng_state(),
                }
                save_checkpoint(checkpoint, state)
                prune_checkpoints(config.output, config.keep_checkpoints)
                log.restart_clock()
            if stopping and done < plan["steps"]:
                console.print(
                    f"stopped after step {done}; checkpoint: {checkpoint}", highlight=False, soft_wrap=True
                )
                raise KeyboardInterrupt
            waiting_since = time.monotonic()
    return TrainResult(
        step=engine,
        first_step=start,
        losses=log.losses,
        seconds=log.seconds,
        images_per_second=config.batch_size * len(log.losses) / log.seconds if log.losses else 0.0,
        skipped=dataset.skipped,
        checkpoint=checkpoint,
    )


def _train_step(
    engine: TrainingStep,
    plan: dict[str, Any],
    sampler: MultiBlockMasks,
    images: Tensor,
    step: int,
    device: torch.device,
) -> StepRecord:
    """Training step `step`, counted from 0, on `images`, uint8 [B, 3, H, W]."""
    generator = torch.Generator().manual_seed(stream_seed(plan["seed"], "masks", step))
    masks = sampler.sample(len(images), step, generator).to(device, non_blocking=True)
    rates = {
        "lr": schedules.learning_rate(
            step,
            total_steps=plan["steps"],
            warmup_steps=plan["warmup_steps"],
            start=plan["start_lr"],
            peak=plan["lr"],
            final=plan["final_lr"],
        ),
        "weight_decay": schedules.weight_decay(
            step, total_steps=plan["steps"], start=plan["weight_decay"], final=plan["final_weight_decay"]
        ),
        "momentum": schedules.momentum(
            step, total_steps=plan["steps"], start=plan["momentum"], final=plan["final_momentum"]
        ),
    }
    loss = engine.step(normalize(images.to(device, non_blocking=True)), masks, **rates)
    tokens = {"context_tokens": masks.context.shape[1], "target_tokens": masks.target.shape[1]}
    return StepRecord(step + 1, loss, {**rates, **tokens})


def _loader(
    config: TrainConfig, dataset: CropDataset, device: torch.device, *, start: int, stop: int
) -> DataLoader[Tensor]:
    return DataLoader(
        dataset,
        batch_sampler=EpochBatches(len(dataset), config.batch_size, seed=config.seed, start=start, stop=stop),
        num_workers=setup.choose_workers(config.workers, device),
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_ctrl_c,
        generator=torch.Generator(),  # seeds the workers' own; without it, the global one would be drawn from
    )


def _ignore_ctrl_c(worker: int) -> None:
    """Ctrl-C goes to every process of the group; the main one ends the workers when it is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one interrupts at once, as usual."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield pressed
        return

    def press(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def _rng_state() -> dict[str, Any]:
    """The global generators, for models that draw from them while they train."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _restore_rng(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
