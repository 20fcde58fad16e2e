"""Training steps of several contestants, side by side on the same batches."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_fast.bench.measure.float32 import full_float32
from jepa_fast.masks import Masks
from jepa_fast.training.step import TrainingStep


class Batch(NamedTuple):
    """pixels float32 [B, 3, H, W], with the masks that I-JEPA sampled for them, mask-major."""

    pixels: Tensor
    masks: Masks

    def reversed(self) -> "Batch":
        """The same samples in reverse order: the same mathematics, summed in another order."""
        batch_size = len(self.pixels)

        def flip(rows: Tensor) -> Tensor:
            return rows.unflatten(0, (-1, batch_size)).flip(1).flatten(0, 1)

        return Batch(self.pixels.flip(0), Masks(flip(self.masks.context), flip(self.masks.target)))

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.pixels.to(device), self.masks.to(device))


class Hyperparameters(NamedTuple):
    """Of one step."""

    lr: float
    weight_decay: float
    momentum: float


@dataclass(frozen=True)
class Curve:
    """Loss and wall seconds of every step."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Contestant:
    """A step and what it is fed: each batch as it is, or with its samples reversed."""

    step: TrainingStep
    reverse: bool = False


@full_float32()
def train_side_by_side(
    contestants: Mapping[str, Contestant],
    batches: Sequence[Batch],
    hyperparameters: Callable[[int], Hyperparameters],
    *,
    budget_s: float = math.inf,
    min_steps: int = 1,
    done: Callable[[], None] = lambda: None,
) -> dict[str, Curve]:
    """Every contestant takes every step before anyone takes the next, in an order that rotates.

    Reading the loss ends the time of a step, so that work queued on a GPU is in it. Training ends with the
    batches, or after `min_steps` once `budget_s` wall seconds are spent. done: called after each step.
    """
    deadline = time.monotonic() + budget_s
    curves = {name: Curve() for name in contestants}
    orders = itertools.cycle(itertools.permutations(contestants))
    for number, (batch, order) in enumerate(zip(batches, orders, strict=False)):
        backwards = batch.reversed()
        values = hyperparameters(number)
        for name in order:
            contestant = contestants[name]
            pixels, masks = backwards if contestant.reverse else batch
            if pixels.is_cuda:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            loss = contestant.step.step(pixels, masks, **values._asdict()).item()
            curves[name].seconds.append(time.perf_counter() - begin)
            curves[name].losses.append(loss)
        done()
        if number + 1 >= min_steps and time.monotonic() >= deadline:
            break
    return curves
