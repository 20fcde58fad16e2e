"""What the configurations of all systems share."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class Checked:
    """A frozen dataclass of sizes, switches and choices, which refuses other values by the name of the field."""

    def __post_init__(self) -> None:
        for field in fields(self):
            name, kind, value = field.name, field.type, getattr(self, field.name)
            if kind is bool:
                if not isinstance(value, bool):
                    raise ValueError(f"{name}: expected True or False, got {value!r}")
            elif get_origin(kind) is Literal:
                if value not in get_args(kind):
                    raise ValueError(f"{name}: expected one of {', '.join(get_args(kind))}, got {value!r}")
            else:
                optional = type(None) in get_args(kind)
                if (value is None and optional) or (type(value) is int and value >= 1):
                    continue
                accepted = "an integer of at least 1" + (" or None" if optional else "")
                raise ValueError(f"{name}: expected {accepted}, got {value!r}")


def check_rotary(heads: str, num_heads: int, dim: int) -> None:
    """Raises ValueError, naming the field `heads`, unless heads have pairs of channels to turn."""
    if dim % num_heads == 0 and dim // num_heads % 2:
        raise ValueError(
            f"{heads}: expected heads of an even number of channels, as positions are rotary, got {num_heads} heads "
            f"of {dim // num_heads}"
        )


# dim, depth, num_heads, mlp_dim
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
    "giant": (1408, 40, 16, 6144),
    "giant_xformers": (1408, 40, 22, 6144),
    "gigantic_xformers": (1664, 48, 26, 8192),
}


def size(name: str) -> dict[str, Any]:
    """Fields of a configuration."""
    return dict(zip(("dim", "depth", "num_heads", "mlp_dim"), SIZES[name], strict=True))
