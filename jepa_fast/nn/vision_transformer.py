"""The vision transformer encoder of all systems."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.kernels.patch_embed.api import masked_patch_embed, patchify
from jepa_fast.kernels.rope.positions import Rope3D

from .attention import Layout
from .block import Block, Blocks
from .fused import FusedModule
from .layers import INIT_STD, LayerNorm, compute_dtype
from .packing import Packed
from .positional import resample, sincos_2d, sincos_3d

Positions = Literal["sincos", "learned", "tiled", "interleaved"]
MODALITY_STD = 1e-6


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder's sizes, and in what the systems differ.

    image_size, patch_size: in pixels, square.
    frames, tubelet: of a clip, and of a patch; None and None for images.
    positions: "sincos", a fixed table, in two dimensions for images and three for clips; "learned", a table that is
        resampled for other image sizes; "tiled" or "interleaved", rotary, see `Rope3D`.
    rope_side: rows and columns count as if the grid had so many of them; None takes them as they are.
    class_token: one more token, before the patches.
    levels: the result joins the LayerNorms of the streams behind these blocks, the last of them the final one.
    modality: vectors for clips and images, and patches of one frame for images.
    """

    image_size: int
    patch_size: int
    dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    frames: int | None = None
    tubelet: int | None = None
    positions: Positions = "sincos"
    rope_side: int | None = None
    class_token: bool = False
    levels: tuple[int, ...] = ()
    modality: bool = False

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size: expected a multiple of patch_size = {self.patch_size}, got {self.image_size}"
            )
        if self.frames is not None and self.tubelet is not None and self.frames % self.tubelet:
            raise ValueError(f"frames: expected a multiple of tubelet = {self.tubelet}, got {self.frames}")
        if self.levels and self.levels[-1] != self.depth - 1:
            raise ValueError(
                f"levels: expected the last block, {self.depth - 1}, at the end, got {self.levels}"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of patches."""
        side = self.image_size // self.patch_size
        return (1 if self.frames is None else self.frames // (self.tubelet or 1)), side, side


def token_positions(ids: Tensor, sides: tuple[int, int], rope_side: int | None = None) -> Tensor:
    """`[..., 3]`: frame, row and column of patch ids, counted by frame, row and column.

    rope_side: rows and columns are scaled to a grid of so many, by (rope_side - 1) / (side - 1).
    """
    rows, columns = sides
    positions = torch.stack([ids // (rows * columns), ids // columns % rows, ids % columns], dim=-1)
    if rope_side is None or sides == (rope_side, rope_side):
        return positions
    scale = [1.0, *((rope_side - 1) / max(side - 1, 1) for side in sides)]
    return positions * torch.tensor(scale, device=ids.device, dtype=torch.float64)


class PatchEmbed(FusedModule):
    """A linear map of square patches in row-major order and their positions, `[B, C, H, W] -> [R, K, D]`.

    `proj` holds the weight as the published convolution does; only the patches that are kept are embedded. With a
    `tubelet`, patches span so many frames of videos `[B, C, T, H, W]`.
    """

    def __init__(self, patch_size: int, dim: int, in_channels: int = 3, tubelet: int | None = None) -> None:
        super().__init__()
        self.sizes = (patch_size, patch_size) if tubelet is None else (tubelet, patch_size, patch_size)
        conv: Any = nn.Conv2d if tubelet is None else nn.Conv3d
        self.proj = conv(in_channels, dim, kernel_size=self.sizes, stride=self.sizes)
        nn.init.trunc_normal_(self.proj.weight, std=INIT_STD)
        nn.init.zeros_(self.proj.bias)

    def forward(
        self,
        pixels: Tensor,
        position: Tensor | None = None,
        index: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        """Args:
        pixels: images or videos, or the rows that `patchify` made of them.
        position: `[N, D]`, added in its dtype.
        extra: `[D]`, added to the bias.
        index: int64 `[R, K]`, of which row r keeps patches of image r % B; None keeps all.
        """
        weight, bias = self.proj.weight, self.proj.bias
        if extra is not None:
            bias = bias + extra
        if self.fused.patch_embed:
            return masked_patch_embed(pixels, weight, bias, index, position=position)
        pixels = pixels.to(compute_dtype(pixels))
        rows = pixels if pixels.ndim == 3 else self.patchify(pixels)
        if index is not None:
            image = torch.arange(len(index), device=index.device) % len(rows)
            rows = rows[image[:, None], index]
        embedded = F.linear(rows, weight.to(rows.dtype).flatten(1), bias.to(rows.dtype))
        if position is None:
            return embedded
        return embedded + (position if index is None else position[index])

    def patchify(self, pixels: Tensor) -> Tensor:
        """Images or videos as rows `[B, N, values of a patch]` in the compute dtype, for several networks."""
        if self.fused.patch_embed:
            return patchify(pixels, self.sizes, dtype=compute_dtype(pixels))
        patches, axes = pixels.to(compute_dtype(pixels)), len(self.sizes)
        for axis, size in reversed(list(enumerate(self.sizes, start=2))):
            patches = patches.unflatten(axis, (-1, size))
        # [B, C, then for each axis patches and size]: patches first, then channel and sizes
        order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
        return patches.permute(order).flatten(1 + axes).flatten(1, axes)


def rotary(positions: Tensor, pairing: str, dtype: torch.dtype) -> Rope3D:
    """For a model in `dtype`: in float64 its tables are, too."""
    return Rope3D(positions, pairing=pairing, dtype=torch.float64 if dtype == torch.float64 else None)


class VisionTransformer(nn.Module):
    """Vision transformer: patches, positions, pre-norm blocks, LayerNorm.

    As published with I-JEPA (arXiv:2301.08243), V-JEPA (2404.08471), V-JEPA 2 (2506.09985) and 2.1, and LeJEPA
    (2511.08544), which differ in their `EncoderConfig`; the state dict has their keys. The published training code of
    I-JEPA draws every linear weight anew after construction, from a normal distribution of standard deviation 0.02,
    which undoes the scale 1 / sqrt(2 * layer) that its constructor gives to the output projections; so there is no
    such scale here either.

    Raises:
        ValueError: `image_size` is not a multiple of `patch_size`, or `dim` not one of `num_heads` and of 4.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        dim, (frames, rows, columns) = config.dim, config.grid
        self.num_patches = frames * rows * columns
        self.patch_embed = PatchEmbed(config.patch_size, dim, tubelet=config.tubelet)
        if config.modality:
            self.patch_embed_img = PatchEmbed(config.patch_size, dim, tubelet=1)
            self.img_mod_embed = nn.Parameter(torch.randn(1, 1, dim) * MODALITY_STD)
            self.video_mod_embed = nn.Parameter(torch.randn(1, 1, dim) * MODALITY_STD)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * MODALITY_STD)
        if config.positions == "sincos":
            flat = config.tubelet is None
            table = sincos_2d(dim, rows, columns) if flat else sincos_3d(dim, frames, rows, columns)
            self.pos_embed = nn.Parameter(table[None], requires_grad=False)
        elif config.positions == "learned":
            table = torch.empty(1, self.num_patches + config.class_token, dim)
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(table, std=INIT_STD))
        self.blocks = Blocks(Block(dim, config.num_heads, config.mlp_dim) for _ in range(config.depth))
        if config.levels:
            self.norms_block = nn.ModuleList(LayerNorm(dim) for _ in config.levels)
        else:
            self.norm = LayerNorm(dim)

    def embedding(self, pixels: Tensor) -> PatchEmbed:
        """The patches that serve these images or clips."""
        return self.patch_embed_img if self.is_image(pixels) else self.patch_embed

    def is_image(self, pixels: Tensor) -> bool:
        """Of a model for both: whether these are images; rows tell by their length."""
        if not self.config.modality:
            return False
        if pixels.ndim == 3:
            return pixels.shape[2] == self.patch_embed_img.proj.weight[0].numel()
        return pixels.shape[2] == 1

    def forward(
        self,
        pixels: Tensor,
        index: Tensor | Packed | None = None,
        *,
        all_levels: bool = True,
        sides: tuple[int, int] | None = None,
        class_only: bool = False,
    ) -> Tensor:
        """Embeds images or clips, or only the patches of them that `index` keeps.

        Args:
            pixels: `[B, 3, image_size, image_size]`, `[B, 3, frames, image_size, image_size]`, or the rows that
                `patch_embed.patchify` makes of them. Rotary and learned positions take pixels of other sizes, too.
            index: int64 `[R, K]`, R a multiple of B; row r has the patches to keep of image r % B. None keeps all.
                `Packed` sequences of any lengths.
            all_levels: False returns the last of the model's levels alone.
            sides: rows and columns of patches, where rows instead of pixels are not those of the configuration.
            class_only: return the class token alone, `[B, 1, D]`; the last block then computes no other.

        Returns:
            `[R, K, D]` (`[B, N, D]` without an index, `[T, D]` for packed ones) in the dtype of the parameters; a
            model with L levels has L * D channels. With a class token, that comes first; there is no index then.
        """
        config = self.config
        image = self.is_image(pixels)
        embed = self.patch_embed_img if image else self.patch_embed
        extra = None
        if config.modality:
            extra = (self.img_mod_embed if image else self.video_mod_embed).flatten()
        sides = self.sides(pixels) if sides is None else sides
        layout = self._layout(pixels, index, sides, embed)
        table = self._table(sides)
        if isinstance(index, Packed):
            rows = pixels if pixels.ndim == 3 else embed.patchify(pixels)
            x = embed(rows.flatten(0, 1)[None], None, index.place[None], extra)[0]
            x = x if table is None else x + table[index.ids]
        else:
            x = embed(pixels, table, index, extra)
        dtype = self.patch_embed.proj.weight.dtype
        if config.class_token:
            first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
            if (
                class_only
            ):  # blocks do not ask for an order, and they compute the last tokens alone if told to
                return self.blocks(torch.cat([x, first], dim=1), self.norm, 1, dtype)
            x = torch.cat([first, x], dim=1)
        if not config.levels:
            return self.blocks(x, self.norm, dtype=dtype, layout=layout)
        norms = [part for part in self.norms_block if isinstance(part, LayerNorm)]
        taps = dict(zip(config.levels, norms[:-1], strict=False)) if all_levels else None
        return self.blocks(x, norms[-1], dtype=dtype, layout=layout, taps=taps)

    def sides(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of patches; of rows without pixels, those of the configuration."""
        if pixels.ndim == 3:
            return self.config.grid[1:]
        height, width = self.patch_embed.sizes[-2:]
        return pixels.shape[-2] // height, pixels.shape[-1] // width

    def _table(self, sides: tuple[int, int]) -> Tensor | None:
        if self.config.positions == "sincos":
            return self.pos_embed[0]
        if self.config.positions == "learned":
            patches = self.pos_embed[0, self.config.class_token :]
            return resample(patches, self.config.grid[1:], sides)
        return None

    def _layout(
        self, pixels: Tensor, index: Tensor | Packed | None, sides: tuple[int, int], embed: PatchEmbed
    ) -> Layout | None:
        mask = index.varlen if isinstance(index, Packed) else None
        if self.config.positions not in ("tiled", "interleaved"):
            return None if mask is None else Layout(mask)
        if index is None:
            count = pixels.shape[1]
            if pixels.ndim != 3:
                count = sides[0] * sides[1] * (pixels.shape[2] // embed.sizes[0])
            ids = torch.arange(count, device=pixels.device)
        else:
            ids = index.ids if isinstance(index, Packed) else index
        positions = token_positions(ids, sides, self.config.rope_side)
        return Layout(mask, rotary(positions, self.config.positions, self.patch_embed.proj.weight.dtype))
