"""Models by name."""

import difflib
from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

from . import ijepa, lejepa, vjepa
from .ijepa import IJEPA, IJEPAConfig
from .lejepa import LeJEPA, LeJEPAConfig
from .vjepa import VJEPA, VJEPA2AC, VJEPA2ACConfig, VJEPAConfig

__all__ = [
    "IJEPA",
    "VJEPA",
    "VJEPA2AC",
    "Config",
    "IJEPAConfig",
    "LeJEPA",
    "LeJEPAConfig",
    "VJEPA2ACConfig",
    "VJEPAConfig",
    "config",
    "create",
    "names",
]

Config = IJEPAConfig | VJEPAConfig | VJEPA2ACConfig | LeJEPAConfig

_CONFIGS: dict[str, Config] = {**ijepa.CONFIGS, **vjepa.CONFIGS, **vjepa.AC_CONFIGS, **lejepa.CONFIGS}
_MODELS: dict[type, Any] = {
    IJEPAConfig: IJEPA,
    VJEPAConfig: VJEPA,
    VJEPA2ACConfig: VJEPA2AC,
    LeJEPAConfig: LeJEPA,
}


def names() -> list[str]:
    """The names that `create` accepts: `<system>_vit<size><patch size, if not 16>[_<image size>][_<frames>f]`.

    Image sizes are left out for I-JEPA and LeJEPA at 224 pixels, frames where a size was published with one number.
    """
    return list(_CONFIGS)


def unknown(argument: str, value: object, accepted: Collection[str]) -> str:
    """The message for a value that is none of the accepted ones."""
    near = difflib.get_close_matches(str(value), accepted, n=1, cutoff=0.0)[0]
    return f"{argument}: expected one of {', '.join(accepted)}, got {value!r}; did you mean {near!r}?"


def config(name: str, **overrides: Any) -> Config:
    """The configuration that `create` would use. Raises as `create` does."""
    if name not in _CONFIGS:
        raise ValueError(unknown("name", name, names()))
    published = _CONFIGS[name]
    accepted = [field.name for field in fields(published)]
    for key in overrides:
        if key not in accepted:
            near = difflib.get_close_matches(key, accepted, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{key}: not a field of the configuration; accepted: {', '.join(accepted)}; did you mean {near!r}?"
            )
    return replace(published, **overrides)


def create(name: str, **overrides: Any) -> Any:
    """Makes a model with freshly drawn weights, from torch's global generator, in float32.

    Under `torch.device("meta")` it has shapes alone.

    Args:
        name: one of `names()`.
        overrides: fields of the configuration to change, such as `image_size=96` or `depth=2`.

    Returns:
        `IJEPA`, `VJEPA`, `VJEPA2AC` or `LeJEPA`, with `.encoder`, `.predictor` (`.projector` for LeJEPA), `.config`.

    Raises:
        ValueError: unknown name or field, or sizes that do not fit each other.
    """
    made = config(name, **overrides)
    return _MODELS[type(made)](made)
