"""What the loop has to know of a system: its views of a sample, its masks, how a batch is laid out, its step."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor, nn

from jepa_fast import models
from jepa_fast.data.augment import View
from jepa_fast.data.loader import Sampler
from jepa_fast.masks import IMAGE_SETS, PUBLISHED_SETS, MultiBlockMasks, TubeMasks
from jepa_fast.models import IJEPA, VJEPA, LeJEPA
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.lejepa_step import LeJEPAStep
from jepa_fast.training.step import IJEPAStep
from jepa_fast.training.vjepa_step import VJEPA21Step, VJEPAStep


@dataclass(frozen=True)
class System:
    """A model with what its training takes.

    frames: of a sample. arrange: from the views of each kind, `[B, V, T, 3, size, size]`, to the batch of its step.
    """

    model: nn.Module
    step: Callable[..., Any]
    kinds: list[View]
    sampler: Sampler | None
    arrange: Callable[[list[Tensor]], Any]
    frames: int = 1

    @property
    def image_size(self) -> int:
        return self.kinds[0].size


def make_system(config: TrainConfig) -> System:
    """Draws the weights of `config.model`. Raises ValueError, naming the field."""
    if config.model not in models.names():
        raise ValueError(models.unknown("model", config.model, models.names()))
    asked = {"image_size": config.image_size, "frames": config.frames, "local_size": config.local_size}
    published = models.config(config.model)
    accepted = [field.name for field in fields(published)]
    overrides = {name: value for name, value in asked.items() if value is not None}
    for name in overrides:
        if name not in accepted and (name, config.frames) != ("frames", 1):
            raise ValueError(
                f"{name}: expected none, as {config.model} has no such size, got {overrides[name]}"
            )
        other = config.model_options.get(name, overrides[name])
        if other != overrides[name]:
            raise ValueError(
                f"{name}: expected one value, got {overrides[name]} and, in model_options, {other}"
            )
    # V-JEPA 2.1 keeps the frames of its clips when it is trained on images: its weights are for both.
    if config.frames == 1 and ("frames" not in accepted or getattr(published, "hierarchical", False)):
        del overrides["frames"]
    model = models.create(config.model, **(dict(config.model_options) | overrides))
    if isinstance(model, IJEPA):
        return _ijepa(config, model)
    if isinstance(model, LeJEPA):
        return _lejepa(config, model)
    if isinstance(model, VJEPA) and model.config.teacher_dim is None:
        return _vjepa(config, model)
    raise ValueError(f"model: expected one that is trained from scratch, got {config.model}")


def _view(config: TrainConfig, size: int, number: int = 1, scale: tuple[float, float] | None = None) -> View:
    return View(
        size,
        number,
        scale=scale or config.crop_scale,
        aspect_ratio=config.crop_ratio,
        flip=config.flip,
        colour=config.colour,
        gray=config.gray,
    )


def _ijepa(config: TrainConfig, model: IJEPA) -> System:
    options: dict[str, Any] = {} if config.min_keep is None else {"min_keep": config.min_keep}
    size = model.config.image_size
    try:
        masks = MultiBlockMasks(size // model.config.patch_size, ragged=config.ragged, **options)
    except ValueError as error:  # about the grid, which the image size decides
        raise ValueError(f"image_size: {size} is too small: {error}") from error
    return System(model, IJEPAStep, [_view(config, size)], masks.sample, lambda views: views[0][:, 0, 0])


def _lejepa(config: TrainConfig, model: LeJEPA) -> System:
    kinds = [_view(config, model.config.image_size, config.global_views)]
    local = model.config.local_size
    if local is not None and config.local_views:
        kinds.append(_view(config, local, config.local_views, config.local_scale))
    step = partial(LeJEPAStep, weight=config.sigreg_weight, num_slices=config.sigreg_slices)
    return System(model, step, kinds, None, lambda views: [kind[:, :, 0].transpose(0, 1) for kind in views])


def _vjepa(config: TrainConfig, model: VJEPA) -> System:
    images = model.config.hierarchical and config.frames == 1
    frames, *sides = model.config.encoder.grid
    grid = (1 if images else frames, sides[0], sides[1])
    try:
        masks = TubeMasks(grid, sets=IMAGE_SETS if images else PUBLISHED_SETS, ragged=config.ragged)
    except ValueError as error:
        raise ValueError(f"image_size: {model.config.image_size} is too small: {error}") from error
    step: Callable[..., Any] = VJEPAStep
    if model.config.hierarchical:
        step = partial(VJEPA21Step, by_distance=config.context_loss_weighting == "distance")
    return System(
        model,
        step,
        [_view(config, model.config.image_size)],
        masks.sample,
        lambda views: views[0][:, 0].transpose(1, 2),
        frames=1 if images else model.config.frames,
    )
