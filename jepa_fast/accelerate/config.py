"""What `optimize_` may replace."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

FilterFn = Callable[[nn.Module, str], bool]
"""(module, its name in the model) -> whether it may be replaced."""

KINDS = ("attention", "mlp", "layer_norm", "predictor", "loss", "warning")


@dataclass(frozen=True)
class OptimizeConfig:
    """The kinds of module that `optimize_` replaces, all on."""

    attention: bool = True
    """Attention, with rotary positions inside where the code base has them."""
    mlp: bool = True
    """Linear, exact GELU, linear."""
    layer_norm: bool = True
    """In a transformer block, the residual sum together with the LayerNorm that reads it."""
    predictor: bool = True
    """The token routing of predictors: no sort, no repeats, no dense mask."""
    loss: bool = True
    """Losses against collapse: SIGReg, VICReg, Barlow Twins."""
    warning: bool = True
    """Warn when a model is called in a way that computes for nothing. Changes no result."""
    corrected: bool = False
    """Correct the known errors of code bases (docs/accelerate) instead of reproducing them."""
    probe: bool = True
    """Before a class is replaced, hold the replacement against it on random weights and inputs in float64."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected a bool, got {getattr(self, name)!r}")
