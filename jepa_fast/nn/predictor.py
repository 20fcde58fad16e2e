"""The predictors of I-JEPA and of the V-JEPAs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa_fast.kernels.token_routing.api import assemble_predictor_tokens

from .attention import Layout
from .block import Block, Blocks
from .fused import FusedModule
from .layers import INIT_STD, LayerNorm, Linear
from .packing import Interleave, Joined, Packed, join, varlen
from .positional import sincos_2d, sincos_3d
from .vision_transformer import MODALITY_STD, Positions, rotary, token_positions

MLP_RATIO = 4


@dataclass(frozen=True)
class PredictorConfig:
    """A predictor's sizes, and in what the systems differ.

    grid: frames, rows and columns of patches. video: the table of "sincos" positions has three dimensions.
    encoder_dim: channels of a level of the encoder. levels: how many levels it reads and predicts.
    out_dim: channels of a prediction.
    mask_tokens: as many vectors to choose from, zero at first; 0 is I-JEPA's single one.
    context_head: context tokens are predicted, too, by a layer of their own.
    modality: vectors for clips and images. positions, rope_side: see `EncoderConfig`.
    """

    grid: tuple[int, int, int]
    encoder_dim: int
    dim: int
    depth: int
    num_heads: int
    out_dim: int
    positions: Positions = "sincos"
    rope_side: int | None = None
    video: bool = False
    mask_tokens: int = 0
    levels: int = 1
    context_head: bool = False
    modality: bool = False


class WideLinear(nn.Sequential):
    """What the predictor of V-JEPA 2.1 makes of several levels: linear, exact GELU, linear."""

    def __init__(self, in_dim: int, hidden_dim: int, dim: int) -> None:
        super().__init__(Linear(in_dim, hidden_dim), nn.GELU(), Linear(hidden_dim, dim))


class Predictor(FusedModule):
    """A narrow vision transformer that predicts embeddings of target patches from those of context patches.

    As published with I-JEPA (arXiv:2301.08243), V-JEPA (2404.08471), V-JEPA 2 (2506.09985) and 2.1, which differ in
    their `PredictorConfig`; the state dict has their keys.
    """

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        dim, (frames, rows, columns) = config.dim, config.grid
        if config.levels > 1:
            wide = WideLinear(config.levels * config.encoder_dim, config.encoder_dim, dim)
            self.predictor_embed: Linear | WideLinear = wide
        else:
            self.predictor_embed = Linear(config.encoder_dim, dim)
        if config.mask_tokens:
            tokens = (nn.Parameter(torch.zeros(1, 1, dim)) for _ in range(config.mask_tokens))
            self.mask_tokens = nn.ParameterList(tokens)
        else:
            self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
            nn.init.trunc_normal_(self.mask_token, std=INIT_STD)
        if config.modality:
            self.video_mod_embed = nn.Parameter(torch.randn(1, 1, dim) * MODALITY_STD)
            self.img_mod_embed = nn.Parameter(torch.randn(1, 1, dim) * MODALITY_STD)
        if config.positions == "sincos":
            table = sincos_3d(dim, frames, rows, columns) if config.video else sincos_2d(dim, rows, columns)
            self.predictor_pos_embed = nn.Parameter(table[None], requires_grad=False)
        self.predictor_blocks = Blocks(
            Block(dim, config.num_heads, MLP_RATIO * dim) for _ in range(config.depth)
        )
        self.predictor_norm = LayerNorm(dim)
        self.predictor_proj = Linear(dim, config.out_dim)
        if config.context_head:
            self.predictor_proj_context = Linear(dim, config.out_dim)

    def forward(
        self, context: Tensor, context_index: Tensor, target_index: Tensor, num_context: int = 1
    ) -> Tensor:
        """Predicts each target mask from each context mask of the same image, with a table of positions.

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

    def predict(
        self,
        context: Tensor,
        contexts: Packed,
        targets: Packed,
        *,
        tokens: Sequence[int] = (0,),
        counts: Sequence[int] | None = None,
        pairs: tuple[tuple[int, int], ...] | None = None,
        sides: tuple[int, int] | None = None,
        image: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Predicts the targets of sequences of any lengths, all in one call.

        Args:
            context: `[Tc, levels * encoder_dim]`, the encoded tokens of `contexts`.
            contexts, targets: sequence s predicts targets s from context s.
            tokens: which mask token stands for the targets of each mask set.
            counts: target tokens of each mask set; None where there is one set.
            pairs: (context, target) sequences to predict from each other, if not each from its own.
            sides: rows and columns of the grid, if not those of the configuration.
            image: which modality vector is added.

        Returns:
            `[Tt, out_dim]` in the order of the targets (of the pairs), and `[Tc, out_dim]` of the context tokens
            where the model has a head for them, both in the compute dtype.
        """
        joined = join(contexts.lengths, targets.lengths, context.device, pairs)
        ids = joined.scatter(contexts.ids, targets.ids)
        mask_tokens = self._mask_tokens(tokens)
        x = self.predictor_embed(context)
        if self.config.modality:
            vector = self.img_mod_embed if image else self.video_mod_embed
            x, mask_tokens = x + vector[0], mask_tokens + vector[0]
        counts = (len(joined.target),) if counts is None else tuple(counts)
        x = Interleave.apply(x, mask_tokens, joined, counts)
        if self.config.positions == "sincos":
            x = x + self.predictor_pos_embed[0, ids]
        layout = self._layout(joined, ids, self.config.grid[1:] if sides is None else sides)
        x = self.predictor_blocks(x, self.predictor_norm, layout=layout)
        of_context = None
        if self.config.context_head:
            of_context = self.predictor_proj_context(x[joined.context])
        return self.predictor_proj(x[joined.target]), of_context

    def _mask_tokens(self, numbers: Sequence[int]) -> Tensor:
        """`[S, dim]`."""
        if not self.config.mask_tokens:
            return self.mask_token[0]
        return torch.cat([self.mask_tokens[number][0] for number in numbers])

    def _layout(self, joined: Joined, ids: Tensor, sides: tuple[int, int]) -> Layout:
        mask = varlen(joined.lengths, ids.device)
        if self.config.positions == "sincos":
            return Layout(mask)
        positions = token_positions(ids, sides, self.config.rope_side)
        return Layout(mask, rotary(positions, self.config.positions, self.predictor_norm.weight.dtype))


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
