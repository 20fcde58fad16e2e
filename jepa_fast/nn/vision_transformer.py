"""The vision transformer encoder of I-JEPA."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.kernels.patch_embed.api import masked_patch_embed, patchify

from .block import Block, Blocks
from .fused import FusedModule
from .layers import INIT_STD, LayerNorm, compute_dtype
from .positional import sincos_2d


class PatchEmbed(FusedModule):
    """A linear map of square patches in row-major order and their positions, `[B, C, H, W] -> [R, K, D]`.

    `proj` holds the weight as the published convolution does; only the patches that are kept are embedded.
    """

    def __init__(self, patch_size: int, dim: int, in_channels: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        nn.init.trunc_normal_(self.proj.weight, std=INIT_STD)
        nn.init.zeros_(self.proj.get_parameter("bias"))

    def forward(self, pixels: Tensor, position: Tensor, index: Tensor | None = None) -> Tensor:
        """Args:
        pixels: images, or the rows that `patchify` made of them.
        position: `[N, D]`, added in its dtype.
        index: int64 `[R, K]`, of which row r keeps patches of image r % B; None keeps all.
        """
        weight, bias = self.proj.parameters()
        if self.fused.patch_embed:
            return masked_patch_embed(pixels, weight, bias, index, position=position)
        pixels = pixels.to(compute_dtype(pixels))
        rows = pixels if pixels.ndim == 3 else self.patchify(pixels)
        if index is not None:
            image = torch.arange(len(index), device=index.device) % len(rows)
            rows, position = rows[image[:, None], index], position[index]
        return F.linear(rows, weight.to(rows.dtype).flatten(1), bias.to(rows.dtype)) + position

    def patchify(self, pixels: Tensor) -> Tensor:
        """Images `[B, C, H, W]` as rows `[B, N, C * patch_size ** 2]` in the compute dtype, for several networks."""
        if self.fused.patch_embed:
            return patchify(pixels, self.patch_size, dtype=compute_dtype(pixels))
        side = self.patch_size
        # [B, C, rows, side, columns, side]
        patches = pixels.to(compute_dtype(pixels)).unflatten(3, (-1, side)).unflatten(2, (-1, side))
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class VisionTransformer(nn.Module):
    """Vision transformer without class token: patches, a fixed sine-cosine table, pre-norm blocks, LayerNorm.

    As published with I-JEPA (arXiv:2301.08243); the state dict has its keys. The published training code draws
    every linear weight anew after construction, from a normal distribution of standard deviation 0.02, which
    undoes the scale 1 / sqrt(2 * layer) that its constructor gives to the output projections; so there is no
    such scale here either.

    Raises:
        ValueError: `image_size` is not a multiple of `patch_size`, or `dim` not one of `num_heads` and of 4.
    """

    def __init__(
        self, image_size: int, patch_size: int, dim: int, depth: int, num_heads: int, mlp_dim: int
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"image_size: expected a multiple of patch_size = {patch_size}, got {image_size}"
            )
        side = image_size // patch_size
        self.num_patches = side * side
        self.patch_embed = PatchEmbed(patch_size, dim)
        self.pos_embed = nn.Parameter(sincos_2d(dim, side, side)[None], requires_grad=False)
        self.blocks = Blocks(Block(dim, num_heads, mlp_dim) for _ in range(depth))
        self.norm = LayerNorm(dim)

    def forward(self, pixels: Tensor, index: Tensor | None = None) -> Tensor:
        """Embeds images, or only the patches of them that `index` keeps.

        Args:
            pixels: `[B, 3, image_size, image_size]`, or the rows that `patch_embed.patchify` makes of them.
            index: int64 `[R, K]`, R a multiple of B; row r has the patches to keep of image r % B. None keeps all.

        Returns:
            `[R, K, D]` (`[B, N, D]` without an index) in the dtype of the parameters.
        """
        x = self.patch_embed(pixels, self.pos_embed[0], index)
        return self.blocks(x, self.norm, dtype=x.dtype)
