"""jepa_fast: a custom-kernel performance engine for joint-embedding predictive architectures.

Public names are imported on first use, so that `import jepa_fast` and the command line start at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa_fast import models as models
    from jepa_fast.kernels.covariance.api import barlow_twins_loss as barlow_twins_loss
    from jepa_fast.kernels.covariance.api import covariance_loss as covariance_loss
    from jepa_fast.kernels.covariance.api import variance_loss as variance_loss
    from jepa_fast.kernels.covariance.api import vicreg_loss as vicreg_loss
    from jepa_fast.kernels.ema.api import ema_update_ as ema_update_
    from jepa_fast.kernels.latent_loss.api import latent_prediction_loss as latent_prediction_loss
    from jepa_fast.kernels.runtime.rooms import explain as explain
    from jepa_fast.kernels.sigreg.api import sigreg_loss as sigreg_loss

_HOMES = {
    "barlow_twins_loss": "jepa_fast.kernels.covariance.api",
    "covariance_loss": "jepa_fast.kernels.covariance.api",
    "ema_update_": "jepa_fast.kernels.ema.api",
    "explain": "jepa_fast.kernels.runtime.rooms",
    "latent_prediction_loss": "jepa_fast.kernels.latent_loss.api",
    "sigreg_loss": "jepa_fast.kernels.sigreg.api",
    "variance_loss": "jepa_fast.kernels.covariance.api",
    "vicreg_loss": "jepa_fast.kernels.covariance.api",
}
_SUBPACKAGES = ("models",)

__all__ = [
    "barlow_twins_loss",
    "covariance_loss",
    "ema_update_",
    "explain",
    "latent_prediction_loss",
    "models",
    "sigreg_loss",
    "variance_loss",
    "vicreg_loss",
]


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
