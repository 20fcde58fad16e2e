"""Models by name."""

from dataclasses import fields, replace

from .ijepa import CONFIGS, IJEPA, IJEPAConfig

__all__ = ["IJEPA", "IJEPAConfig", "create", "names"]


def names() -> list[str]:
    """The names that `create` accepts: `ijepa_vit<size><patch size>[_<image size, if not 224>]`."""
    return list(CONFIGS)


def create(name: str, **overrides: int) -> IJEPA:
    """Makes a model with freshly drawn weights, from torch's global generator, in float32.

    Args:
        name: one of `names()`.
        overrides: fields of the configuration to change, such as `image_size=96` or `depth=2`.

    Raises:
        ValueError: unknown name or field, or sizes that do not fit each other.
    """
    if name not in CONFIGS:
        raise ValueError(f"name: expected one of {', '.join(names())}, got {name!r}")
    accepted = [field.name for field in fields(IJEPAConfig)]
    for key in overrides:
        if key not in accepted:
            raise ValueError(f"{key}: not a field of the configuration; accepted: {', '.join(accepted)}")
    return IJEPA(replace(CONFIGS[name], **overrides))
