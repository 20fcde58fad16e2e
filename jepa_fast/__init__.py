"""jepa_fast: a custom-kernel performance engine for joint-embedding predictive architectures.

Public names are imported on first use, so that `import jepa_fast` and the command line start at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa_fast import models as models
    from jepa_fast.kernels.adamw_ema.api import AdamWEMA as AdamWEMA
    from jepa_fast.kernels.adamw_ema.api import adamw_ema_step_ as adamw_ema_step_
    from jepa_fast.kernels.ema.api import ema_update_ as ema_update_
    from jepa_fast.kernels.latent_loss.api import latent_prediction_loss as latent_prediction_loss
    from jepa_fast.kernels.runtime.rooms import explain as explain

_HOMES = {
    "AdamWEMA": "jepa_fast.kernels.adamw_ema.api",
    "adamw_ema_step_": "jepa_fast.kernels.adamw_ema.api",
    "ema_update_": "jepa_fast.kernels.ema.api",
    "explain": "jepa_fast.kernels.runtime.rooms",
    "latent_prediction_loss": "jepa_fast.kernels.latent_loss.api",
}
_SUBPACKAGES = ("models",)

__all__ = ["AdamWEMA", "adamw_ema_step_", "ema_update_", "explain", "latent_prediction_loss", "models"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
