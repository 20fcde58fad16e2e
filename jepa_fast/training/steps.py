"""The training step that belongs to a model."""

from typing import Any

from jepa_fast.models import IJEPA, VJEPA, VJEPA2AC, LeJEPA
from jepa_fast.training.action_step import VJEPA2ACStep
from jepa_fast.training.lejepa_step import LeJEPAStep
from jepa_fast.training.step import IJEPAStep, Step
from jepa_fast.training.vjepa_step import VJEPA21Step, VJEPAStep


def make_step(model: Any, **options: Any) -> Step:
    """The step of the system that `model` is of; `options` are those of its class.

    Raises ValueError for a model without one.
    """
    if isinstance(model, IJEPA):
        return IJEPAStep(model, **options)
    if isinstance(model, VJEPA):
        return (VJEPA21Step if model.config.hierarchical else VJEPAStep)(model, **options)
    if isinstance(model, VJEPA2AC):
        return VJEPA2ACStep(model, **options)
    if isinstance(model, LeJEPA):
        return LeJEPAStep(model, **options)
    raise ValueError(
        f"model: expected an I-JEPA, a V-JEPA, a V-JEPA 2-AC or a LeJEPA, got {type(model).__name__}"
    )
