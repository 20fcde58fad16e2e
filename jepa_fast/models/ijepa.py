"""I-JEPA (arXiv:2301.08243): encoder and predictor in the published sizes."""

from dataclasses import dataclass

from torch import Tensor, nn

from jepa_fast.masks import Masks, RaggedMasks
from jepa_fast.nn.packing import join, pack
from jepa_fast.nn.predictor import Predictor, PredictorConfig
from jepa_fast.nn.vision_transformer import EncoderConfig, VisionTransformer

from .config import Checked, size


@dataclass(frozen=True)
class IJEPAConfig(Checked):
    """Sizes of an I-JEPA model; images and patches are square, in pixels."""

    image_size: int
    patch_size: int
    dim: int
    depth: int
    num_heads: int  # of encoder and predictor alike
    mlp_dim: int
    predictor_depth: int
    predictor_dim: int = 384

    @property
    def encoder(self) -> EncoderConfig:
        return EncoderConfig(
            self.image_size, self.patch_size, self.dim, self.depth, self.num_heads, self.mlp_dim
        )

    @property
    def predictor(self) -> PredictorConfig:
        return PredictorConfig(
            grid=self.encoder.grid,
            encoder_dim=self.dim,
            dim=self.predictor_dim,
            depth=self.predictor_depth,
            num_heads=self.num_heads,
            out_dim=self.dim,
        )


PREDICTOR_DEPTHS = {"tiny": 6, "small": 6, "base": 6, "large": 12, "huge": 12, "giant": 16}


def _config(name: str, patch_size: int, image_size: int) -> IJEPAConfig:
    return IJEPAConfig(image_size, patch_size, **size(name), predictor_depth=PREDICTOR_DEPTHS[name])


CONFIGS = {
    "ijepa_vitt8_128": _config("tiny", 8, 128),
    "ijepa_vits8_128": _config("small", 8, 128),
    "ijepa_vitt16": _config("tiny", 16, 224),
    "ijepa_vits16": _config("small", 16, 224),
    "ijepa_vitb16": _config("base", 16, 224),
    "ijepa_vitl16": _config("large", 16, 224),
    "ijepa_vith14": _config("huge", 14, 224),
    "ijepa_vith16_448": _config("huge", 16, 448),
    "ijepa_vitg16": _config("giant", 16, 224),
}


class IJEPA(nn.Module):
    """The trained half of I-JEPA: context encoder and predictor. The teacher belongs to the training step."""

    def __init__(self, config: IJEPAConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VisionTransformer(config.encoder)
        self.predictor = Predictor(config.predictor)

    def forward(self, pixels: Tensor, masks: Masks | RaggedMasks) -> Tensor:
        """Predicts the embeddings of the target patches from the context patches.

        Args:
            pixels: `[B, 3, image_size, image_size]`, or the rows that `encoder.patch_embed.patchify` makes of them.
            masks: `context` int64 `[E * B, Nc]`, `target` int64 `[M * B, Np]`, mask-major; or ragged rows.

        Returns:
            `[M * E * B, Np, dim]`; row `(m * E + e) * B + b` predicts target mask m from context mask e. Ragged ones
            come as `[T, dim]`, sequences in the same order.
        """
        if isinstance(masks, RaggedMasks):
            return self._forward_ragged(pixels, masks)
        context = self.encoder(pixels, masks.context)
        num_context = len(masks.context) // len(pixels)
        return self.predictor(context, masks.context, masks.target, num_context)

    def _forward_ragged(self, pixels: Tensor, masks: RaggedMasks) -> Tensor:
        batch, patches = len(pixels), self.encoder.num_patches
        context, target = (pack([part], batch, patches) for part in masks)
        embedded = self.encoder(pixels, context)
        pairs = ragged_pairs(masks, batch)
        return self.predictor.predict(embedded, context, target, pairs=pairs)[0]


def ragged_pairs(masks: RaggedMasks, batch_size: int) -> tuple[tuple[int, int], ...]:
    """The rows of context and target of each prediction, `(m * E + e) * B + b`."""
    num_context = len(masks.context.lengths) // batch_size
    num_targets = len(masks.target.lengths) // batch_size
    return tuple(
        (e * batch_size + b, m * batch_size + b)
        for m in range(num_targets)
        for e in range(num_context)
        for b in range(batch_size)
    )


def ragged_target_places(masks: RaggedMasks, batch_size: int, num_patches: int) -> Tensor:
    """int64 `[T]`: sample * num_patches + patch of every prediction of ragged masks, in its order."""
    targets = pack([masks.target], batch_size, num_patches)
    pairs = ragged_pairs(masks, batch_size)
    joined = join(masks.context.lengths, masks.target.lengths, targets.place.device, pairs)
    assert joined.target_source is not None
    return targets.place[joined.target_source]
