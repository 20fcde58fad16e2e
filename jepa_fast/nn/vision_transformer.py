"""The vision transformer encoder of I-JEPA."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import Block, Blocks
from .layers import INIT_STD, LayerNorm, compute_dtype
from .positional import sincos_2d


class PatchEmbed(nn.Module):
    """A linear map of square patches in row-major order, `[B, C, H, W] -> [R, K, D]`.

    `proj` holds the weight as the published convolution does; only the patches that are kept are embedded.
    """

    def __init__(self, patch_size: int, dim: int, in_channels: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        nn.init.trunc_normal_(self.proj.weight, std=INIT_STD)
        nn.init.zeros_(self.proj.get_parameter("bias"))

    def forward(self, pixels: Tensor, index: Tensor | None = None) -> Tensor:
        """index: int64 `[R, K]`, of which row r keeps patches of image r % B; None keeps all."""
        side = self.patch_size
        pixels = pixels.to(compute_dtype(pixels))
        # [B, C, rows, side, columns, side]
        patches = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, N, C * side * side]
        if index is not None:
            image = torch.arange(len(index), device=index.device) % len(pixels)
            patches = patches[image[:, None], index]
        weight, bias = (parameter.to(patches.dtype) for parameter in self.proj.parameters())
        return F.linear(patches, weight.flatten(1), bias)


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
            pixels: `[B, 3, image_size, image_size]`.
            index: int64 `[R, K]`, R a multiple of B; row r has the patches to keep of image r % B. None keeps all.

        Returns:
            `[R, K, D]` (`[B, N, D]` without an index) in the dtype of the parameters.
        """
        position = self.pos_embed if index is None else self.pos_embed[0][index]
        x = self.patch_embed(pixels, index) + position
        return self.blocks(x, self.norm, dtype=x.dtype)
