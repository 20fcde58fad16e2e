"""V-JEPA (arXiv:2404.08471), V-JEPA 2 (2506.09985) and 2.1, and V-JEPA 2-AC: the published sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

from jepa_fast.masks import Masks, RaggedMasks
from jepa_fast.nn.action_predictor import ActionPredictor, ActionPredictorConfig
from jepa_fast.nn.packing import Packed, pack
from jepa_fast.nn.predictor import Predictor, PredictorConfig
from jepa_fast.nn.vision_transformer import EncoderConfig, VisionTransformer

from .config import Checked, check_rotary, size

ROPE_SIDE = 16  # patches per side at which V-JEPA 2.1's rotary positions count as they are


@dataclass(frozen=True)
class VJEPAConfig(Checked):
    """Sizes of a V-JEPA; pixels are square.

    positions: "sincos" (V-JEPA), "tiled" (V-JEPA 2) or "interleaved" (V-JEPA 2.1, corrected).
    mask_tokens: of the predictor; `token_per_set`: mask set i is predicted with token i, else all with token 0, which
        is what the published code of V-JEPA 2 does.
    hierarchical: V-JEPA 2.1: an encoder with LayerNorms behind four blocks, modality vectors, patches of one frame for
        images, and a predictor with a head for context tokens.
    levels: how many of these four the predictor reads and predicts.
    teacher_dim: channels of a teacher of another size; None is a teacher that follows the encoder.
    """

    image_size: int
    frames: int
    dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    predictor_depth: int = 12
    predictor_dim: int = 384
    predictor_heads: int = 12
    patch_size: int = 16
    tubelet: int = 2
    positions: Literal["sincos", "tiled", "interleaved"] = "tiled"
    mask_tokens: int = 10
    token_per_set: bool = False
    hierarchical: bool = False
    levels: int = 1
    teacher_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions != "sincos":
            check_rotary("num_heads", self.num_heads, self.dim)
            check_rotary("predictor_heads", self.predictor_heads, self.predictor_dim)
        if self.levels not in ((1, 4) if self.hierarchical else (1,)):
            accepted = "1 or 4" if self.hierarchical else "1 of a model that is not hierarchical"
            raise ValueError(f"levels: expected {accepted}, got {self.levels}")
        if self.hierarchical and self.depth % 4:
            raise ValueError(f"depth: expected a multiple of 4 of a hierarchical model, got {self.depth}")

    @property
    def encoder(self) -> EncoderConfig:
        quarter = self.depth // 4
        return EncoderConfig(
            self.image_size,
            self.patch_size,
            self.dim,
            self.depth,
            self.num_heads,
            self.mlp_dim,
            frames=self.frames,
            tubelet=self.tubelet,
            positions=self.positions,
            rope_side=ROPE_SIDE if self.hierarchical else None,
            levels=tuple(quarter * part - 1 for part in range(1, 5)) if self.hierarchical else (),
            modality=self.hierarchical,
        )

    @property
    def predictor(self) -> PredictorConfig:
        encoder = self.encoder
        return PredictorConfig(
            grid=encoder.grid,
            encoder_dim=self.dim,
            dim=self.predictor_dim,
            depth=self.predictor_depth,
            num_heads=self.predictor_heads,
            out_dim=self.teacher_dim or self.levels * self.dim,
            positions=self.positions,
            rope_side=encoder.rope_side,
            video=True,
            mask_tokens=self.mask_tokens,
            levels=self.levels,
            context_head=self.hierarchical,
            modality=self.hierarchical,
        )


class Predictions(NamedTuple):
    """Of all mask sets, one after the other, in the compute dtype.

    target: `[Tt, out_dim]`. context: `[Tc, out_dim]` of a model with a head for context tokens, else None.
    contexts, targets: the tokens that they are about; B sequences for each set.
    """

    target: Tensor
    context: Tensor | None
    contexts: Packed
    targets: Packed


class VJEPA(nn.Module):
    """The trained half of a V-JEPA: context encoder and predictor. The teacher belongs to the training step."""

    def __init__(self, config: VJEPAConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VisionTransformer(config.encoder)
        self.predictor = Predictor(config.predictor)

    def forward(
        self,
        pixels: Tensor,
        masks: Sequence[Masks | RaggedMasks],
        *,
        sides: tuple[int, int] | None = None,
    ) -> Predictions:
        """Predicts the targets of every mask set from its context; all sets go through the networks in one call.

        Args:
            pixels: `[B, 3, frames, image_size, image_size]`, or the rows that `encoder.patch_embed.patchify` makes
                of them.
            masks: for each set `context` int64 `[B, Nc]` and `target` int64 `[B, Np]`, or ragged rows.
            sides: rows and columns of patches, where rows instead of pixels are not those of the configuration.
        """
        image = self.encoder.is_image(pixels)
        sides = self.encoder.sides(pixels) if sides is None else sides
        rows = pixels if pixels.ndim == 3 else self.encoder.embedding(pixels).patchify(pixels)
        contexts, targets = (pack(part, *rows.shape[:2]) for part in zip(*masks, strict=True))
        embedded = self.encoder(rows, contexts, all_levels=self.config.levels > 1, sides=sides)
        target, context = self.predictor.predict(
            embedded,
            contexts,
            targets,
            tokens=self._tokens(len(masks)),
            counts=[one.token_counts[1] for one in masks],
            sides=sides,
            image=image,
        )
        return Predictions(target, context, contexts, targets)

    def _tokens(self, sets: int) -> list[int]:
        """The mask token of each set."""
        return [
            number % self.config.mask_tokens if self.config.token_per_set else 0 for number in range(sets)
        ]


class VJEPA2AC(nn.Module):
    """V-JEPA 2-AC: a frozen encoder, and a predictor of the next frame from actions and states."""

    def __init__(self, config: "VJEPA2ACConfig") -> None:
        super().__init__()
        self.config = config
        self.encoder = VisionTransformer(config.encoder)
        self.predictor = ActionPredictor(config.predictor)

    def forward(self, x: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None) -> Tensor:
        """See `ActionPredictor.forward`."""
        return self.predictor(x, actions, states, extrinsics)


@dataclass(frozen=True)
class VJEPA2ACConfig(Checked):
    """Sizes of a V-JEPA 2-AC: each frame is repeated into a tubelet of its own."""

    image_size: int
    dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    frames: int = 8
    predictor_depth: int = 24
    predictor_dim: int = 1024
    predictor_heads: int = 16
    action_dim: int = 7
    extrinsics: bool = False
    patch_size: int = 16
    tubelet: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rotary("num_heads", self.num_heads, self.dim)
        check_rotary("predictor_heads", self.predictor_heads, self.predictor_dim)

    @property
    def encoder(self) -> EncoderConfig:
        sizes = (self.image_size, self.patch_size, self.dim, self.depth, self.num_heads, self.mlp_dim)
        return EncoderConfig(*sizes, frames=self.tubelet, tubelet=self.tubelet, positions="tiled")

    @property
    def predictor(self) -> ActionPredictorConfig:
        return ActionPredictorConfig(
            side=self.image_size // self.patch_size,
            encoder_dim=self.dim,
            dim=self.predictor_dim,
            depth=self.predictor_depth,
            num_heads=self.predictor_heads,
            action_dim=self.action_dim,
            extrinsics=self.extrinsics,
        )


def _vjepa(name: str, image_size: int) -> VJEPAConfig:
    return VJEPAConfig(
        image_size,
        16,
        **size(name),
        positions="sincos",
        mask_tokens=2,
        token_per_set=True,
        predictor_heads=16,
    )


def _vjepa21(name: str, image_size: int, frames: int, depth: int, teacher_dim: int | None) -> VJEPAConfig:
    return VJEPAConfig(
        image_size,
        frames,
        **size(name),
        predictor_depth=depth,
        positions="interleaved",
        mask_tokens=8,
        hierarchical=True,
        levels=4 if teacher_dim is None else 1,
        teacher_dim=teacher_dim,
    )


CONFIGS: dict[str, VJEPAConfig] = {
    "vjepa_vitl_224": _vjepa("large", 224),
    "vjepa_vith_224": _vjepa("huge", 224),
    "vjepa_vith_384": _vjepa("huge", 384),
    "vjepa2_vitl_256": VJEPAConfig(256, 16, **size("large")),
    "vjepa2_vith_256": VJEPAConfig(256, 16, **size("huge")),
    "vjepa2_vitg_256": VJEPAConfig(256, 16, **size("giant_xformers")),
    "vjepa2_vitl_256_64f": VJEPAConfig(256, 64, **size("large")),
    "vjepa2_vith_256_64f": VJEPAConfig(256, 64, **size("huge")),
    "vjepa2_vitg_256_64f": VJEPAConfig(256, 64, **size("giant_xformers")),
    "vjepa2_vitg_384": VJEPAConfig(384, 64, **size("giant_xformers")),
    "vjepa21_vitb_384": _vjepa21("base", 384, 64, 12, 1664),
    "vjepa21_vitl_384": _vjepa21("large", 384, 64, 12, 1664),
    "vjepa21_vitg_256": _vjepa21("giant_xformers", 256, 16, 24, None),
    "vjepa21_vitG_256": _vjepa21("gigantic_xformers", 256, 16, 24, None),
    "vjepa21_vitg_384": _vjepa21("giant_xformers", 384, 64, 24, None),
    "vjepa21_vitG_384": _vjepa21("gigantic_xformers", 384, 64, 24, None),
}
AC_CONFIGS: dict[str, VJEPA2ACConfig] = {
    "vjepa2_ac_vitg": VJEPA2ACConfig(256, **size("giant_xformers")),
}
