"""What a training run reports: lines on standard error, rows in metrics.jsonl."""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from jepa_fast.training.world import World

METRICS_NAME = "metrics.jsonl"
MOST_SKIPPED = 20  # steps in a row whose loss or gradient is not finite: such a run does not recover


class NonFiniteLossError(RuntimeError):
    """The loss, or the gradient, became infinite or not a number."""


@dataclass(frozen=True)
class StepRecord:
    """One training step; `step` counts from 1, `loss` and `grad_norm` may still be on their way from the device.

    tokens, flops: of the whole batch, see `jepa_fast.training.flops`. grad_norm: None where the step has none to tell.
    """

    step: int
    loss: Tensor
    fields: dict[str, Any]
    tokens: int = 0
    flops: int = 0
    grad_norm: Tensor | None = None


class TrainingLog:
    """Collects steps and reports them together, so that the device is waited for once per report.

    A row of metrics.jsonl is one step: step, loss, the fields of its record, and, for all steps of one report alike,
    images and tokens per second, the share of the time that went into waiting for data, and the achieved FLOP/s, with
    their share of the device's peak where that is known. A loss that is not finite is null there.

    skip: a step whose loss or gradient is not finite is counted and reported instead of ending the run, until
    `MOST_SKIPPED` follow each other.
    peak: FLOP/s of all devices together, None where unknown.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        start: int,
        total: int,
        batch_size: int,
        console: Console,
        world: World | None = None,
        skip: bool = False,
        peak: float | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.losses: list[float] = []
        self.seconds = 0.0
        self.skipped = 0
        self._in_a_row = 0
        self._skip = skip
        self._peak = peak
        self._world = world or World(torch.device("cpu"))
        self._total = total
        self._batch_size = batch_size
        self._console = console
        self._pending: list[StepRecord] = []
        self._data_seconds = 0.0
        self._since = time.monotonic()
        writes = folder is not None and self._world.is_main
        self._path = folder / METRICS_NAME if folder and writes else None
        self._scalars = scalar_writer(folder, start) if folder and writes and tensorboard else None
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal or not self._world.is_main,
        )
        self._task = self._bar.add_task("", total=total, completed=start, speed="")
        self._start: int | None = start

    def __enter__(self) -> "TrainingLog":
        self._bar.start()
        self._since = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._scalars:
            self._scalars.close()

    def add(self, record: StepRecord, data_seconds: float) -> None:
        """Notes a step, without looking at its loss."""
        self._pending.append(record)
        self._data_seconds += data_seconds
        self._bar.update(self._task, completed=record.step)

    def flush(self) -> None:
        """Reports the steps noted since the last time. Raises NonFiniteLossError."""
        if not self._pending:
            return
        # A finite loss says nothing of its gradient, which is what the weights are made from.
        pending = [
            (r.loss, torch.zeros_like(r.loss) if r.grad_norm is None else r.grad_norm) for r in self._pending
        ]
        values = torch.stack([torch.stack([loss, norm.to(loss.dtype)]) for loss, norm in pending], dim=1)
        losses, norms = self._world.mean(values).tolist()  # waits for the device
        for record, loss, norm in zip(self._pending, losses, norms, strict=True):
            self._check_finite(record.step, loss, norm)
        now = time.monotonic()
        seconds = now - self._since
        shared, speed = self._speed(seconds)
        self._write(losses, shared)
        last = self._pending[-1]
        remaining = (self._total - last.step) * seconds / len(losses)
        if self._world.is_main:
            self._bar.update(self._task, speed=speed)
            skipped = f"skipped {self.skipped}  " if self.skipped else ""
            self._console.print(
                f"step {last.step}/{self._total}  loss {losses[-1]:.4f}  lr {last.fields['lr']:.2e}  "
                f"{speed}  {skipped}data wait {shared['data_wait']:.0%}  {_clock(remaining)} left",
                highlight=False,
                soft_wrap=True,
            )
        self.losses += losses
        self.seconds += seconds
        self._pending.clear()
        self._data_seconds = 0.0
        self._since = now

    def _speed(self, seconds: float) -> tuple[dict[str, float], str]:
        """Of the steps since the last report: for metrics.jsonl, and for people."""
        images = self._batch_size * len(self._pending) / seconds
        tokens = sum(record.tokens for record in self._pending) / seconds
        flops = sum(record.flops for record in self._pending) / seconds
        shared = {"images_per_s": round(images, 2), "data_wait": round(self._data_seconds / seconds, 4)}
        parts = [f"{images:.1f} images/s"]
        if tokens:
            shared["tokens_per_s"] = round(tokens)
            parts.append(f"{tokens:.3g} tokens/s" if tokens < 1000 else f"{tokens / 1000:.3g}k tokens/s")
        if flops:
            shared["flop_per_s"] = round(flops)
            parts.append(_flop_rate(flops))
        if flops and self._peak:
            shared["mfu"] = round(flops / self._peak, 4)
            parts[-1] = f"MFU {flops / self._peak:.1%}"
        return shared, "  ".join(parts)

    def _check_finite(self, step: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        if not self._skip:
            raise NonFiniteLossError(f"{what} at step {step}")
        if self._in_a_row >= MOST_SKIPPED:
            raise NonFiniteLossError(f"{what} at step {step}, the {self._in_a_row}th in a row")

    def restart_clock(self) -> None:
        """Leaves what was done since the last report, such as a checkpoint, out of the timing."""
        self._since = time.monotonic()

    def _write(self, losses: list[float], shared: dict[str, Any]) -> None:
        if not self._path:
            return
        if self._start is not None:  # only now do the rows of steps done again have successors
            keep_rows(self._path, self._start)
            self._start = None
        with self._path.open("a", encoding="utf-8") as file:
            for record, loss in zip(self._pending, losses, strict=True):
                value = loss if math.isfinite(loss) else None
                row = {"step": record.step, "loss": value, **record.fields, **shared}
                file.write(json.dumps(row) + "\n")
                if self._scalars:
                    for name, value in row.items():
                        if name != "step" and value is not None:
                            self._scalars.add_scalar(name, value, record.step)


def scalar_writer(folder: Path, start: int) -> Any:
    """TensorBoard's; what it holds after step `start` is dropped. Raises ValueError where TensorBoard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard: it is not installed; `pip install 'jepa-fast[tensorboard]'` brings it"
        ) from None
    return SummaryWriter(str(folder), purge_step=start + 1)


def keep_rows(path: Path, last_step: int) -> None:
    """Drops the rows of metrics.jsonl after `last_step`, and a last line that was cut off by a crash."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] <= last_step:
            kept.append(line + "\n")
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)


def _flop_rate(flops: float) -> str:
    for unit, size in (("PFLOP/s", 1e15), ("TFLOP/s", 1e12)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e9:.3g} GFLOP/s"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
