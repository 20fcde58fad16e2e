"""The predictor of I-JEPA."""

import torch
from torch import Tensor, nn

from jepa_fast.kernels.token_routing.api import assemble_predictor_tokens

from .block import Block, Blocks
from .fused import FusedModule
from .layers import INIT_STD, LayerNorm, Linear
from .positional import sincos_2d

MLP_RATIO = 4


class Predictor(FusedModule):
    """A narrow vision transformer that predicts embeddings of target patches from those of context patches.

    As published with I-JEPA (arXiv:2301.08243); the state dict has its keys. `side` is the side of the square
    patch grid, `encoder_dim` the width of the encoder.
    """

    def __init__(self, side: int, encoder_dim: int, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.predictor_embed = Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)
        self.predictor_pos_embed = nn.Parameter(sincos_2d(dim, side, side)[None], requires_grad=False)
        self.predictor_blocks = Blocks(Block(dim, num_heads, MLP_RATIO * dim) for _ in range(depth))
        self.predictor_norm = LayerNorm(dim)
        self.predictor_proj = Linear(dim, encoder_dim)

    def forward(
        self, context: Tensor, context_index: Tensor, target_index: Tensor, num_context: int = 1
    ) -> Tensor:
        """Predicts each target mask from each context mask of the same image.

        Args:
            context: `[E * B, Nc, encoder_dim]`, the encoded patches of E masks for each of B images, mask-major.
            context_index: int64 `[E * B, Nc]`, the patch of each context token.
            target_index: int64 `[M * B, Np]`, the patches to predict, of M masks for each image, mask-major.
            num_context: E.

        Returns:
            `[M * E * B, Np, encoder_dim]` in the compute dtype; row `(m * E + e) * B + b`.
        """
        x = self.predictor_embed(context)
        position = self.predictor_pos_embed[0]
        if self.fused.token_routing:
            x = assemble_predictor_tokens(
                x, context_index, target_index, position, self.mask_token, num_context=num_context
            )
        else:
            x = assemble(x, context_index, target_index, position, self.mask_token, num_context)
        # What the last block makes of the context tokens is not read.
        return self.predictor_proj(self.predictor_blocks(x, self.predictor_norm, target_index.shape[1]))


def assemble(
    context: Tensor,
    context_index: Tensor,
    target_index: Tensor,
    position: Tensor,
    mask_token: Tensor,
    num_context: int,
) -> Tensor:
    """`assemble_predictor_tokens` in plain PyTorch operators."""
    batch = len(context) // num_context
    num_masks = len(target_index) // batch
    x = context + position[context_index]  # [E * B, Nc, D]
    targets = (mask_token + position[target_index]).unflatten(0, (num_masks, 1, batch))
    targets = targets.expand(-1, num_context, -1, -1, -1).flatten(1, 2)  # [M, E * B, Np, D]
    return torch.cat([x.expand(num_masks, -1, -1, -1), targets], dim=2).flatten(0, 1)
