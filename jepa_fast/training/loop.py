"""The training loop: data, masks, schedules, one step after the other, checkpoints.

A run is a pure function of its configuration: the order of the data, the crops and the masks depend on
the seed and the step alone. A resumed run therefore continues bit for bit as if it had not stopped,
wherever in an epoch that was.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import DataLoader

from jepa_fast.data import RawBatch, StepBatches
from jepa_fast.masks import Masks
from jepa_fast.training import schedules, setup
from jepa_fast.training.checkpoint import (
    checkpoint_path,
    later_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.engine import Engine, StepFactory
from jepa_fast.training.flops import peak_flops, step_flops
from jepa_fast.training.log import NonFiniteLossError, StepRecord, TrainingLog
from jepa_fast.training.step import Step, TrainingStep
from jepa_fast.training.systems import System, make_system
from jepa_fast.training.vjepa_step import VJEPA21Step, context_weight_at
from jepa_fast.training.world import Meetings, World, join

__all__ = [
    "NonFiniteLossError", "StepFactory", "TerminatedError", "TrainConfig", "TrainResult", "TrainingStep", "train",
]  # fmt: skip

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TerminatedError(Exception):
    """The run was asked to end by SIGTERM, and a checkpoint is written; the message says where."""


@dataclass(frozen=True)
class TrainResult:
    """What a run did."""

    step: TrainingStep
    """The training step with its trained weights."""
    first_step: int
    """The step, counted from 0, that `losses` starts at."""
    losses: list[float]
    """One per step, the mean over all processes."""
    seconds: float
    """Wall time of the steps, without checkpoints."""
    images_per_second: float
    skipped: list[tuple[Path, str]]
    """Files that could not be read, with the reason."""
    checkpoint: Path | None
    """The last one, if there is an output folder."""
    skipped_steps: int = 0
    """Steps that a loss or gradient that is not finite left out."""


def train(
    config: TrainConfig, *, step_factory: StepFactory | None = None, console: Console | None = None
) -> TrainResult:
    """Trains as `config` says. Seeds torch's global generators and draws from them.

    `step_factory(model, precision=...)` makes the training step, by default that of the model's system. The log goes to
    `console`, by default standard error. Under torchrun every process calls this; the first one writes.

    Raises ValueError or FileNotFoundError, naming the field, before the first step when the
    configuration cannot be carried out; NonFiniteLossError when the loss or the gradient becomes
    infinite or not a number (the last checkpoint is from before); OSError when a checkpoint cannot be written;
    KeyboardInterrupt on Ctrl-C and TerminatedError on SIGTERM, once the step is done and a checkpoint written.
    """
    if step_factory is None and config.engine != "fast":
        raise ValueError(f"engine: {config.engine} needs a step_factory")
    world = join(setup.choose_device(config.device))
    setup.check_world(config, world)
    console = console or Console(stderr=True)
    source = setup.checkpoint_to_resume(config)
    saved = load_checkpoint(source, required=("step", "plan", "data", "training", "rng")) if source else None
    if config.output and world.is_main:
        setup.check_output(config.output, source)
    world.barrier()

    torch.manual_seed(config.seed)
    system = make_system(config)
    setup.check_parts(config, system, world)
    if config.output and world.is_main:
        setup.check_free_space(config.output, system.model, config.keep_checkpoints)
    data = setup.open_data(config, system)
    subset = setup.training_part(config, data)
    plan = setup.make_plan(config, system=system, samples=len(subset))
    precision = setup.choose_precision(config.precision, world.device)
    begin = setup.Start()
    if config.weights is not None:
        if source is None:
            begin = setup.read_weights(config.weights, system.model)
            said = f"{config.weights}, {'with' if begin.optimizer else 'without'} the state of an optimizer"
        else:
            said = f"those of {source}; {config.weights} is not read again"
        if world.is_main:
            console.print(f"weights: {said}", highlight=False, soft_wrap=True)
    engine = Engine(system.model, step_factory or system.step, config, precision, world, begin.teacher)
    if begin.optimizer is not None:
        engine.load_optimizer(begin.optimizer)
    del begin  # of the size of three models
    identity = setup.data_identity(data, len(subset))
    start = 0
    if source and saved:
        setup.check_same_run(saved, plan, identity, source)
        start = saved["step"]
        engine.load_state_dict(saved["training"])
        _restore_rng(saved["rng"])

    if data.skipped and world.is_main:
        console.print(f"samples: {len(data)}, files skipped: {len(data.skipped)}", highlight=False)
    batches = StepBatches(
        data, config.batch_size, system.kinds, seed=config.seed, sampler=system.sampler,
        share=world.share(config.batch_size), subset=subset,
    )  # fmt: skip
    peak = peak_flops(world.device, precision)
    log = TrainingLog(
        config.output,
        start=start,
        total=plan["steps"],
        batch_size=config.batch_size,
        console=console,
        world=world,
        skip=config.nonfinite == "skip",
        peak=None if peak is None else peak * world.size,
        tensorboard=config.tensorboard,
    )
    checkpoint = source
    # Of a run that goes on from an earlier checkpoint than its last; kept until there is a new one.
    superseded = [] if config.output is None else later_checkpoints(config.output, start)
    known = len(data.skipped)
    # Worker processes are forked here, before the log draws its bar from a thread.
    loaded = iter(_loader(config, batches, world.device, start=start, stop=plan["steps"]))
    with log, _signals() as received:
        waiting_since = time.monotonic()
        meetings = Meetings(world)
        for done, raw in enumerate(loaded, start + 1):
            data_seconds = time.monotonic() - waiting_since
            record = _train_step(engine, plan, system, raw, done - 1, world)
            stopping = meetings.heard(done, max(received, default=0))
            last = done == plan["steps"] or stopping > 0
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
                if world.is_main:
                    save_checkpoint(checkpoint, state)
                    for path in superseded:
                        if path != checkpoint:
                            path.unlink(missing_ok=True)
                    prune_checkpoints(config.output, config.keep_checkpoints)
                superseded = []
                log.restart_clock()
            if stopping and done < plan["steps"]:
                cause = "SIGTERM: " if stopping == signal.SIGTERM else ""
                message = f"{cause}stopped after step {done}; checkpoint: {checkpoint}"
                if world.is_main:
                    console.print(message, highlight=False, soft_wrap=True)
                if stopping == signal.SIGTERM:
                    raise TerminatedError(message)
                raise KeyboardInterrupt
            waiting_since = time.monotonic()
    if len(data.skipped) > known and world.is_main:
        console.print(f"samples: {len(data)}, files skipped: {len(data.skipped)}", highlight=False)
    world.barrier()
    return TrainResult(
        step=engine.step_,
        first_step=start,
        losses=log.losses,
        seconds=log.seconds,
        images_per_second=config.batch_size * len(log.losses) / log.seconds if log.losses else 0.0,
        skipped=data.skipped,
        checkpoint=checkpoint,
        skipped_steps=log.skipped,
    )


def _train_step(
    engine: Engine, plan: dict[str, Any], system: System, raw: RawBatch, step: int, world: World
) -> StepRecord:
    """Training step `step`, counted from 0."""
    rates = schedules.rates(step, plan)
    fields: dict[str, Any] = dict(rates)
    if isinstance(engine.step_, Step):
        engine.step_.max_norm = schedules.max_norm(step, plan)
    if isinstance(engine.step_, VJEPA21Step):
        ramp = plan["context_loss_start"], plan["context_loss_end"]
        engine.step_.context_weight = fields["context_weight"] = context_weight_at(step, ramp=ramp)
    raw = raw.to(world.device)
    pixels = system.arrange(raw.views(system.kinds))
    loss = engine.step(pixels, raw.masks, rates)
    if isinstance(raw.masks, Masks):
        fields |= {"context_tokens": raw.masks.context.shape[1], "target_tokens": raw.masks.target.shape[1]}
    has_teacher = getattr(engine.step_, "teacher", None) is not None
    tokens, flops = step_flops(system.model, has_teacher, pixels, raw.masks)
    size = world.size
    return StepRecord(step + 1, loss, fields, tokens * size, flops * size, engine.grad_norm)


def _loader(
    config: TrainConfig, batches: StepBatches, device: torch.device, *, start: int, stop: int
) -> DataLoader[RawBatch]:
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=setup.choose_workers(config.workers, device),
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # seeds the workers' own; without it, the global one would be drawn from
    )


def _ignore_signals(worker: int) -> None:
    """They go to every process of the group; the main one ends the workers when it is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that the first Ctrl-C or SIGTERM is added to; a second one acts at once, as usual."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield received
        return
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _rng_state() -> dict[str, Any]:
    """The global generators, for models that draw from them while they train."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _restore_rng(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
