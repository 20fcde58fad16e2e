"""The I-JEPA step on real frames as one fused piece after the other is switched on: time and memory of each.

Each row has the pieces of the rows above it, too. It is held against the step without its newest piece, and
against the published eager step. Model and frames are those of `make demo` on a CPU.
"""

import copy
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial

import torch

from jepa_fast import models
from jepa_fast.bench.baselines.ijepa import EagerIJEPAStep
from jepa_fast.bench.measure import Case, Trial
from jepa_fast.bench.measure.training import Batch
from jepa_fast.bench.suites.ijepa_step import check_losses, take
from jepa_fast.data import EpochBatches, normalize, open_folder, sample_clips_folder
from jepa_fast.masks import MultiBlockMasks
from jepa_fast.nn.fused import Fused
from jepa_fast.training.step import IJEPAStep, Precision

MODEL = "ijepa_vitt8_128"
SIZES = {"image_size": 96, "predictor_dim": 192}
BATCH_SIZE = 8
BATCHES = 3
PIECES = [field.name for field in fields(Fused) if field.name != "sigreg"]  # LeJEPA's


def cases() -> Iterator[Case]:
    for precision in ("bfloat16", "float32"):
        for number, piece in enumerate(("none", *PIECES)):
            last = number == len(PIECES)
            yield Case(
                op="training step",
                shape=f"{'+ ' if number else ''}{piece}",
                dtype=precision,
                build=partial(_build, precision, number),
                quick=last and precision == "bfloat16",
                by_products=True,
            )


def _selection(number: int) -> Fused:
    return replace(Fused.none(), **dict.fromkeys(PIECES[:number], True))


def _build(precision: Precision, number: int, device: torch.device) -> Trial:
    torch.manual_seed(0)
    model = models.create(MODEL, **SIZES).to(device)
    side = model.config.image_size
    dataset = open_folder(sample_clips_folder(), image_size=side, seed=0)
    masks = MultiBlockMasks(side // model.config.patch_size)
    order = EpochBatches(len(dataset), BATCH_SIZE, seed=0, stop=BATCHES)
    batches = [
        Batch(normalize(torch.stack([dataset[key] for key in keys])), masks.sample(BATCH_SIZE, step)).to(
            device
        )
        for step, keys in enumerate(order)
    ]

    def ours(pieces: int) -> IJEPAStep:
        return IJEPAStep(copy.deepcopy(model), precision=precision, fused=_selection(pieces))

    baselines = {"I-JEPA eager": partial(take, EagerIJEPAStep(model, precision=precision))}
    if number:
        baselines = {f"without {PIECES[number - 1]}": partial(take, ours(number - 1)), **baselines}
    return Trial(
        ours=partial(take, ours(number)),
        check=lambda: check_losses(ours(number), model, batches),
        implementation="jepa_fast",
        baselines=baselines,
        inputs=[(batch,) for batch in batches],
    )
