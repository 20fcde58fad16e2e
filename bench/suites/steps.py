"""A whole training step of each system against its published eager step, at equal dtype, on masks that change from
step to step; and V-JEPA 2's ragged masks against cut ones."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jepa_fast import models
from jepa_fast.bench.baselines.ijepa import EagerIJEPAStep
from jepa_fast.bench.baselines.lejepa import EagerLeJEPAStep
from jepa_fast.bench.baselines.vjepa import EagerVJEPAStep
from jepa_fast.bench.measure import Case, ErrorCheck, Trial
from jepa_fast.bench.measure.agreement import agreement
from jepa_fast.bench.measure.training import Hyperparameters
from jepa_fast.kernels.sigreg.philox import directions
from jepa_fast.masks import Masks, MaskSets, MultiBlockMasks, TubeMasks
from jepa_fast.training.step import Precision, Step
from jepa_fast.training.steps import make_step

PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float32")
BATCHES = 2  # each with masks of its own, whose sizes decide the cost of a step
CHECKED_STEPS = 2  # the second one's loss shows the gradient, the optimizer and the teacher of the first
RATES = Hyperparameters(lr=1e-4, weight_decay=0.04, momentum=0.998)
GLOBAL_VIEWS, LOCAL_VIEWS = 2, 6  # as in the paper, whose local crops are 98 pixels for 224
SLICES = 1024

TINY = {"dim": 192, "depth": 6, "num_heads": 3, "mlp_dim": 768}
SMALL = {"dim": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536}
VIDEO_PREDICTOR = {
    "predictor_dim": 192,
    "predictor_depth": 3,
    "predictor_heads": 6,
}  # head_dim 32, as published


@dataclass(frozen=True)
class Setting:
    """A system at one size."""

    system: str
    model: str
    sizes: dict[str, Any]
    batch_size: int
    quick: bool = True

    @property
    def shape(self) -> str:
        pixels = self.sizes["image_size"]
        frames = f" x {self.sizes['frames']} frames" if "frames" in self.sizes else ""
        width = f"{self.sizes['dim']} wide, {self.sizes['depth']} deep"
        return f"{pixels} px{frames}, {width}, B={self.batch_size}"


SETTINGS = (
    Setting(
        "I-JEPA", "ijepa_vitt8_128", {"image_size": 128, **TINY, "predictor_depth": 3, "predictor_dim": 96}, 8
    ),
    Setting(
        "V-JEPA",
        "vjepa_vitl_224",
        {"image_size": 128, "frames": 16, **TINY, **VIDEO_PREDICTOR, "predictor_heads": 8},
        2,
    ),
    Setting("V-JEPA 2", "vjepa2_vitl_256", {"image_size": 128, "frames": 16, **TINY, **VIDEO_PREDICTOR}, 2),
    Setting(
        "V-JEPA 2.1",
        "vjepa21_vitg_256",
        {"image_size": 128, "frames": 16, **TINY, "depth": 8, **VIDEO_PREDICTOR},
        2,
    ),
    Setting(
        "LeJEPA",
        "lejepa_vits8_128",
        {"image_size": 64, "local_size": 24, **TINY, "proj_dim": 128, "hidden_dim": 512},
        16,
    ),
    Setting(
        "V-JEPA 2", "vjepa2_vitl_256", {"image_size": 256, "frames": 16, **SMALL, **VIDEO_PREDICTOR}, 1, False
    ),
)


def cases() -> Iterator[Case]:
    for setting in SETTINGS:
        for precision in PRECISIONS:
            yield Case(
                op=f"{setting.system} step",
                shape=setting.shape,
                dtype=precision,
                build=partial(build, setting, precision),
                # In float32 the systems are alike: products bound them.
                quick=setting.quick and (precision == "bfloat16" or setting.system == "V-JEPA 2"),
                by_products=True,
            )
    for precision in PRECISIONS:
        yield Case(
            op="V-JEPA 2 step, ragged",
            shape=f"{ragged_tokens(RAGGED)}, {RAGGED.shape}",
            dtype=precision,
            build=partial(build_ragged, RAGGED, precision),
            quick=False,
            by_products=True,
        )


RAGGED = Setting(
    "V-JEPA 2", "vjepa2_vitl_256", {"image_size": 128, "frames": 16, **TINY, **VIDEO_PREDICTOR}, 4
)


def build(setting: Setting, precision: Precision, device: torch.device) -> Trial:
    model, batches = tensors(setting, device)
    return Trial(
        ours=partial(take, ours(setting, copy.deepcopy(model), precision)),
        check=partial(check_losses, setting, precision, model, batches),
        implementation="jepa_fast",
        baselines={f"{setting.system} eager": partial(take, eager(setting, model, precision))},
        inputs=batches,
    )


def build_ragged(setting: Setting, precision: Precision, device: torch.device) -> Trial:
    """Both sides are ours: every token that the sampler chose, against rows cut to the shortest one."""
    model, batches = tensors(setting, device)
    both = [
        (pixels, video_masks(setting, step, device, ragged=True), masks)
        for step, (pixels, masks) in enumerate(batches)
    ]
    ragged, cut = (make_step(copy.deepcopy(model), precision=precision) for _ in range(2))
    return Trial(
        ours=lambda pixels, all_tokens, _: take(ragged, pixels, all_tokens),
        check=partial(check_losses, setting, precision, model, batches),
        implementation="jepa_fast",
        baselines={"cut masks": lambda pixels, _, masks: take(cut, pixels, masks)},
        inputs=both,
    )


def ragged_tokens(setting: Setting) -> str:
    """How many tokens a clip has in context and targets, both sets together, by either form of the masks."""
    counts = []
    for ragged in (True, False):
        masks = [video_masks(setting, step, torch.device("cpu"), ragged) for step in range(BATCHES)]
        total = [
            sum(part) / BATCHES / setting.batch_size
            for part in zip(*(m.token_counts for m in masks), strict=True)
        ]
        counts.append(f"{total[0]:.0f} + {total[1]:.0f}")
    return f"{counts[0]} tokens for {counts[1]}"


def tensors(setting: Setting, device: torch.device) -> tuple[Any, list[tuple[Any, Any]]]:
    """The model, and batches with their masks."""
    torch.manual_seed(0)
    model = models.create(setting.model, **setting.sizes).to(device)
    side, batch = setting.sizes["image_size"], setting.batch_size
    batches: list[tuple[Any, Any]] = []
    for step in range(BATCHES):
        if setting.system == "LeJEPA":
            crops = ((GLOBAL_VIEWS, side), (LOCAL_VIEWS, setting.sizes["local_size"]))
            images = [torch.randn(views, batch, 3, size, size, device=device) for views, size in crops]
            batches.append((images, None))
        elif setting.system == "I-JEPA":
            sampler = MultiBlockMasks(side // model.config.patch_size)
            masks = sampler.sample(batch, step, torch.Generator().manual_seed(step)).to(device)
            batches.append((torch.randn(batch, 3, side, side, device=device), masks))
        else:
            clips = torch.randn(batch, 3, setting.sizes["frames"], side, side, device=device)
            batches.append((clips, video_masks(setting, step, device)))
    return model, batches


def video_masks(setting: Setting, step: int, device: torch.device, ragged: bool = False) -> MaskSets:
    side = setting.sizes["image_size"] // 16
    sampler = TubeMasks((setting.sizes["frames"] // 2, side, side), ragged=ragged)
    return sampler.sample(setting.batch_size, step, torch.Generator().manual_seed(step)).to(device)


def ours(setting: Setting, model: Any, precision: Precision) -> Step:
    options = {"num_slices": SLICES} if setting.system == "LeJEPA" else {}
    return make_step(model, precision=precision, **options)


def eager(setting: Setting, model: Any, precision: Precision, *, same_directions: bool = False) -> Any:
    """same_directions: SIGReg's directions are those that our step draws, so that losses can be compared."""
    if setting.system == "I-JEPA":
        return EagerIJEPAStep(model, precision=precision)
    if setting.system == "LeJEPA":
        like = torch.zeros(1, device=next(model.parameters()).device)

        def drawn(step: int) -> Tensor:
            return directions(step, setting.sizes["proj_dim"], SLICES, like)

        return EagerLeJEPAStep(
            model, precision=precision, num_slices=SLICES, directions=drawn if same_directions else None
        )
    return EagerVJEPAStep(model, precision=precision)


def take(step: Any, batch: Any, masks: Any) -> None:
    step.step(batch, masks, **RATES._asdict())


def check_losses(
    setting: Setting, precision: Precision, model: Any, batches: Sequence[tuple[Any, Any]]
) -> ErrorCheck:
    """The losses of the first steps from the weights of `model`, held to the budget of `measure/agreement.py`."""

    def losses(step: Any, reverse: bool = False) -> list[float]:
        found = []
        for batch, masks in batches[:CHECKED_STEPS]:
            fed = (_reversed(batch), _reversed_masks(masks, setting)) if reverse else (batch, masks)
            found.append(step.step(*fed, **RATES._asdict()).item())
        return found

    mine = losses(ours(setting, copy.deepcopy(model), precision))
    theirs = losses(eager(setting, model, precision, same_directions=True))
    back = losses(eager(setting, model, precision, same_directions=True), reverse=True)
    reference = theirs
    if precision != "float32":
        reference = losses(eager(setting, model, "float32", same_directions=True))
    return agreement(mine, [theirs, back], reference).check


def _reversed(batch: Any) -> Any:
    """The samples in reverse order."""
    return [views.flip(1) for views in batch] if isinstance(batch, list) else batch.flip(0)


def _reversed_masks(masks: Any, setting: Setting) -> Any:
    def flip(rows: Any) -> Any:
        return rows.unflatten(0, (-1, setting.batch_size)).flip(1).flatten(0, 1)

    if masks is None:
        return None
    if isinstance(masks, MaskSets):
        return MaskSets(Masks(flip(one.context), flip(one.target)) for one in masks)
    return Masks(flip(masks.context), flip(masks.target))
