"""What a training run reports: lines on standard error, rows in metrics.jsonl."""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

METRICS_NAME = "metrics.jsonl"


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number."""


@dataclass(frozen=True)
class StepRecord:
    """One training step; `step` counts from 1, `loss` may still be on its way from the device."""

    step: int
    loss: Tensor
    fields: dict[str, Any]


class TrainingLog:
    """Collects steps and reports them together, so that the device is waited for once per report.

    A row of metrics.jsonl is one step: step, loss, the fields of its record, and, for all steps of one
    report alike, images per second and the share of the time that went into waiting for data.
    """

    def __init__(
        self, folder: Path | None, *, start: int, total: int, batch_size: int, console: Console
    ) -> None:
        self.losses: list[float] = []
        self.seconds = 0.0
        self._path = folder / METRICS_NAME if folder else None
        self._total = total
        self._batch_size = batch_size
        self._console = console
        self._pending: list[StepRecord] = []
        self._data_seconds = 0.0
        self._since = time.monotonic()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=start)
        if self._path:
            keep_rows(self._path, start)

    def __enter__(self) -> "TrainingLog":
        self._bar.start()
        self._since = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def add(self, record: StepRecord, data_seconds: float) -> None:
        """Notes a step. Raises NonFiniteLossError where looking at the loss costs nothing: on the CPU."""
        self._pending.append(record)
        self._data_seconds += data_seconds
        self._bar.update(self._task, completed=record.step)
        if record.loss.device.type == "cpu":
            _check_finite(record.step, record.loss.item())

    def flush(self) -> None:
        """Reports the steps noted since the last time. Raises NonFiniteLossError."""
        if not self._pending:
            return
        losses = [record.loss.item() for record in self._pending]  # waits for the device
        for record, loss in zip(self._pending, losses, strict=True):
            _check_finite(record.step, loss)
        now = time.monotonic()
        seconds = now - self._since
        rate = self._batch_size * len(losses) / seconds
        waiting = self._data_seconds / seconds
        self._write(losses, {"images_per_s": round(rate, 2), "data_wait": round(waiting, 4)})
        last = self._pending[-1]
        remaining = (self._total - last.step) * seconds / len(losses)
        self._console.print(
            f"step {last.step}/{self._total}  loss {losses[-1]:.4f}  lr {last.fields['lr']:.2e}  "
            f"{rate:.1f} images/s  data wait {waiting:.0%}  {_clock(remaining)} left",
            highlight=False,
            soft_wrap=True,
        )
        self.losses += losses
        self.seconds += seconds
        self._pending.clear()
        self._data_seconds = 0.0
        self._since = now

    def restart_clock(self) -> None:
        """Leaves what was done since the last report, such as a checkpoint, out of the timing."""
        self._since = time.monotonic()

    def _write(self, losses: list[float], shared: dict[str, Any]) -> None:
        if not self._path:
            return
        with self._path.open("a", encoding="utf-8") as file:
            for record, loss in zip(self._pending, losses, strict=True):
                file.write(json.dumps({"step": record.step, "loss": loss, **record.fields, **shared}) + "\n")


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


def _check_finite(step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise NonFiniteLossError(f"the loss is {loss} at step {step}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
