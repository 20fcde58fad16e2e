"""LeJEPA (arXiv:2511.08544): an encoder and a projector, without teacher and predictor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jepa_fast.nn.layers import Linear
from jepa_fast.nn.vision_transformer import EncoderConfig, VisionTransformer

from .config import Checked, size


@dataclass(frozen=True)
class LeJEPAConfig(Checked):
    """Sizes of a LeJEPA; pixels are square.

    image_size, local_size: of the global and of the local crops, None where there are no local ones.
    embed_dim: of the embedding that probes read, a linear map of the class token.
    hidden_dim, proj_dim: of the projector.
    """

    image_size: int
    patch_size: int
    dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    local_size: int | None = None
    embed_dim: int = 512
    hidden_dim: int = 2048
    proj_dim: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        local = self.local_size
        if local is not None and (local % self.patch_size or local > self.image_size):
            raise ValueError(
                f"local_size: expected a multiple of patch_size = {self.patch_size}, at most image_size = "
                f"{self.image_size}, got {local}"
            )

    @property
    def encoder(self) -> EncoderConfig:
        sizes = (self.image_size, self.patch_size, self.dim, self.depth, self.num_heads, self.mlp_dim)
        return EncoderConfig(*sizes, positions="learned", class_token=True)


class Projector(nn.Sequential):
    """Three linear layers with batch normalisation and ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, dim: int) -> None:
        super().__init__(
            Linear(in_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(),
            Linear(hidden_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(),
            Linear(hidden_dim, dim),
        )


class Views(NamedTuple):
    """embedding: `[V, B, embed_dim]`. projection: `[V, B, proj_dim]`. Both in the compute dtype, global views first."""

    embedding: Tensor
    projection: Tensor


class LeJEPA(nn.Module):
    """Embeds the views of images, and projects them to where the loss is taken."""

    def __init__(self, config: LeJEPAConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VisionTransformer(config.encoder)
        self.head = Linear(config.dim, config.embed_dim)
        self.projector = Projector(config.embed_dim, config.hidden_dim, config.proj_dim)

    def forward(self, crops: Sequence[Tensor]) -> Views:
        """crops: for each size of crops `[V, B, 3, size, size]`, the global ones first."""
        tokens = [self.encoder(views.flatten(0, 1), class_only=True)[:, 0] for views in crops]
        embedding = self.head(torch.cat(tokens))
        batch = crops[0].shape[1]
        return Views(*(x.unflatten(0, (-1, batch)) for x in (embedding, self.projector(embedding))))


CONFIGS: dict[str, LeJEPAConfig] = {
    "lejepa_vits8_128": LeJEPAConfig(128, 8, **size("small"), proj_dim=16),
    "lejepa_vitl14": LeJEPAConfig(224, 14, **size("large"), local_size=98),
    "lejepa_vith14": LeJEPAConfig(224, 14, **size("huge"), local_size=98),
}
