"""What the loop has to know of a system: its views of a sample, its masks, how a batch is laid out, its step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from jepa_fast import models
from jepa_fast.data.augment import View
from jepa_fast.data.loader import Sampler
from jepa_fast.masks import MultiBlockMasks
from jepa_fast.models import IJEPA
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.step import IJEPAStep


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
        raise ValueError(f"model: expected one of {', '.join(models.names())}, got {config.model}")
    overrides = dict(config.model_options)
    if config.image_size is not None:
        overrides["image_size"] = config.image_size
    model = models.create(config.model, **overrides)
    if isinstance(model, IJEPA):
        return _ijepa(config, model)
    raise ValueError(f"model: {config.model} has no training here")


def view(config: TrainConfig, size: int, number: int = 1, scale: tuple[float, float] | None = None) -> View:
    return View(
        size,
        number,
        scale=scale or config.crop_scale,
        flip=config.flip,
        colour=config.colour,
        gray=config.gray,
    )


def _ijepa(config: TrainConfig, model: IJEPA) -> System:
    options = {} if config.min_keep is None else {"min_keep": config.min_keep}
    size = model.config.image_size
    try:
        masks = MultiBlockMasks(size // model.config.patch_size, **options)
    except ValueError as error:  # about the grid, which the image size decides
        raise ValueError(f"image_size: {size} is too small: {error}") from error
    return System(model, IJEPAStep, [view(config, size)], masks.sample, lambda views: views[0][:, 0, 0])
