"""Mask samplers against the published collators, on the host: time of the masks of one batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch

from jepa_fast.bench.baselines.masks import ijepa_masks, vjepa_masks
from jepa_fast.bench.measure import Case, ErrorCheck, Trial
from jepa_fast.masks import PUBLISHED_SETS, MultiBlockMasks, TubeMasks

CHECKED_STEPS = 3


@dataclass(frozen=True)
class Setting:
    """grid: rows and columns of images, frames, rows and columns of clips."""

    name: str
    grid: tuple[int, ...]
    batch_size: int


SETTINGS = (
    Setting("I-JEPA H/14", (16, 16), 128),
    Setting("V-JEPA 224/16f", (8, 14, 14), 24),
    Setting("V-JEPA 2 256/16f", (8, 16, 16), 24),
    Setting("V-JEPA 2 384/64f", (32, 24, 24), 6),
)


def cases() -> Iterator[Case]:
    for setting in SETTINGS:
        yield Case(
            op="masks of a batch",
            shape=f"{setting.name} B={setting.batch_size}",
            dtype="int64",
            build=partial(build, setting),
        )


def build(setting: Setting, device: torch.device) -> Trial:
    if device.type != "cpu":
        raise RuntimeError("masks are drawn on the host: measured with --device cpu")
    video = len(setting.grid) == 3
    sampler = TubeMasks(setting.grid) if len(setting.grid) == 3 else MultiBlockMasks(setting.grid[0])
    steps, published_steps = count(), count()

    def published(step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if len(setting.grid) == 3:
            return vjepa_masks(setting.grid, PUBLISHED_SETS, setting.batch_size, step)
        return [ijepa_masks(setting.grid[0], setting.batch_size, step)]

    def check() -> ErrorCheck:
        """The same indices, bit for bit."""
        for step in range(CHECKED_STEPS):
            torch.manual_seed(step)
            expected = published(step)
            torch.manual_seed(step)
            found = sampler.sample(setting.batch_size, step)
            for ours, theirs in zip(found if video else [found], expected, strict=True):
                if not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)):
                    return ErrorCheck(1.0, 0.0, 0.0, float("inf"), f"indices of step {step} differ")
        return ErrorCheck(0.0, 0.0, 0.0, 0.0, "")

    return Trial(
        ours=lambda: sampler.sample(setting.batch_size, next(steps)),
        check=check,
        implementation="jepa_fast",
        baselines={"published collator": lambda: published(next(published_steps))},
    )
