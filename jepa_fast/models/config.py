"""What the configurations of all systems share."""

from typing import Any


class Checked:
    """A frozen dataclass that refuses sizes below 1, by the name of the field."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool | str | tuple) or value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")


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
