"""A whole I-JEPA training step against the published eager one, over masks that change from step to step."""

import copy
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from jepa_fast import models
from jepa_fast.bench.baselines.ijepa import EagerIJEPAStep
from jepa_fast.bench.measure import Case, ErrorCheck, Trial
from jepa_fast.bench.measure.agreement import agreement
from jepa_fast.bench.measure.training import Batch, Contestant, Hyperparameters, train_side_by_side
from jepa_fast.masks import MultiBlockMasks
from jepa_fast.models import IJEPA
from jepa_fast.training.step import IJEPAStep, Precision, TrainingStep

MODEL = "ijepa_vits8_128"
BATCH_SIZE, QUICK_BATCH_SIZE = 16, 2
BATCHES = 3  # each with masks of its own, whose sizes decide the cost of a step
CHECKED_STEPS = 2  # the second one's loss shows the gradient, the optimizer and the teacher of the first
RATES = Hyperparameters(lr=2e-4, weight_decay=0.04, momentum=0.996)  # at the start of I-JEPA's schedules


def cases() -> Iterator[Case]:
    yield _case("bfloat16", QUICK_BATCH_SIZE, quick=True)
    precisions: tuple[Precision, ...] = ("bfloat16", "float32")
    for precision in precisions:
        yield _case(precision, BATCH_SIZE, quick=False)


def _case(precision: Precision, batch_size: int, *, quick: bool) -> Case:
    shape = f"{MODEL} B={batch_size}"
    return Case(
        "training step",
        shape,
        precision,
        partial(build, precision, batch_size),
        quick=quick,
        by_products=True,
    )


def build(precision: Precision, batch_size: int, device: torch.device) -> Trial:
    torch.manual_seed(0)
    model = models.create(MODEL)
    side, patch = model.config.image_size, model.config.patch_size
    masks = MultiBlockMasks(side // patch)
    batches = [
        Batch(torch.randn(batch_size, 3, side, side), masks.sample(batch_size, step)).to(device)
        for step in range(BATCHES)
    ]
    model.to(device)
    ours = IJEPAStep(copy.deepcopy(model), precision=precision)
    eager = EagerIJEPAStep(model, precision=precision)
    return Trial(
        ours=partial(take, ours),
        check=partial(check_losses, ours, model, batches),
        implementation="jepa_fast",
        baselines={"I-JEPA eager": partial(take, eager)},
        inputs=[(batch,) for batch in batches],
    )


def take(step: TrainingStep, batch: Batch) -> None:
    step.step(*batch, **RATES._asdict())


def check_losses(ours: IJEPAStep, model: IJEPA, batches: Sequence[Batch]) -> ErrorCheck:
    """The losses of the first steps from the weights of `model`, held to the budget of `measure/agreement.py`."""
    contestants = {
        "ours": Contestant(ours),
        "eager": Contestant(EagerIJEPAStep(model, precision=ours.precision)),
        "reversed": Contestant(EagerIJEPAStep(model, precision=ours.precision), reverse=True),
    }
    if ours.precision != "float32":
        contestants["float32"] = Contestant(EagerIJEPAStep(model))
    curves = train_side_by_side(contestants, batches[:CHECKED_STEPS], lambda step: RATES)
    losses = {name: curve.losses for name, curve in curves.items()}
    reference = losses.get("float32", losses["eager"])
    return agreement(losses["ours"], [losses["eager"], losses["reversed"]], reference).check
