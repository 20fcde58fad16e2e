"""I-JEPA (arXiv:2301.08243): encoder and predictor in the published sizes."""

from dataclasses import dataclass

from torch import Tensor, nn

from jepa_fast.masks import Masks
from jepa_fast.nn.predictor import Predictor
from jepa_fast.nn.vision_transformer import VisionTransformer


@dataclass(frozen=True)
class IJEPAConfig:
    """Sizes of an I-JEPA model; images and patches are square, in pixels."""

    image_size: int
    patch_size: int
    dim: int
    depth: int
    num_heads: int  # of encoder and predictor alike
    mlp_dim: int
    predictor_depth: int
    predictor_dim: int = 384

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")


# dim, depth, num_heads, mlp_dim, predictor_depth
SIZES = {
    "t": (192, 12, 3, 768, 6),
    "s": (384, 12, 6, 1536, 6),
    "b": (768, 12, 12, 3072, 6),
    "l": (1024, 24, 16, 4096, 12),
    "h": (1280, 32, 16, 5120, 12),
    "g": (1408, 40, 16, 6144, 16),
}


def _config(size: str, patch_size: int, image_size: int) -> IJEPAConfig:
    dim, depth, num_heads, mlp_dim, predictor_depth = SIZES[size]
    return IJEPAConfig(image_size, patch_size, dim, depth, num_heads, mlp_dim, predictor_depth)


CONFIGS = {
    "ijepa_vitt8_128": _config("t", 8, 128),
    "ijepa_vits8_128": _config("s", 8, 128),
    "ijepa_vitt16": _config("t", 16, 224),
    "ijepa_vits16": _config("s", 16, 224),
    "ijepa_vitb16": _config("b", 16, 224),
    "ijepa_vitl16": _config("l", 16, 224),
    "ijepa_vith14": _config("h", 14, 224),
    "ijepa_vith16_448": _config("h", 16, 448),
    "ijepa_vitg16": _config("g", 16, 224),
}


class IJEPA(nn.Module):
    """The trained half of I-JEPA: context encoder and predictor. The teacher belongs to the training step."""

    def __init__(self, config: IJEPAConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VisionTransformer(
            config.image_size, config.patch_size, config.dim, config.depth, config.num_heads, config.mlp_dim
        )
        self.predictor = Predictor(
            config.image_size // config.patch_size,
            config.dim,
            config.predictor_dim,
            config.predictor_depth,
            config.num_heads,
        )

    def forward(self, pixels: Tensor, masks: Masks) -> Tensor:
        """Predicts the embeddings of the target patches from the context patches.

        Args:
            pixels: `[B, 3, image_size, image_size]`, or the rows that `encoder.patch_embed.patchify` makes of them.
            masks: `context` int64 `[E * B, Nc]`, `target` int64 `[M * B, Np]`, mask-major.

        Returns:
            `[M * E * B, Np, dim]`; row `(m * E + e) * B + b` predicts target mask m from context mask e.
        """
        context = self.encoder(pixels, masks.context)
        num_context = len(masks.context) // len(pixels)
        return self.predictor(context, masks.context, masks.target, num_context)
