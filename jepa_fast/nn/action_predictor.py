"""The action-conditioned predictor of V-JEPA 2-AC."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa_fast.kernels.attention.masks import BlockCausal

from .attention import Layout
from .block import Block, Blocks
from .layers import LayerNorm, Linear
from .vision_transformer import rotary, token_positions

MLP_RATIO = 4


@dataclass(frozen=True)
class ActionPredictorConfig:
    """Sizes; `side` is that of the square patch grid of a frame, at which rows and columns count as they are."""

    side: int
    encoder_dim: int
    dim: int
    depth: int
    num_heads: int
    action_dim: int = 7
    extrinsics: bool = False


class ActionPredictor(nn.Module):
    """Predicts the patches of the next frame from those of all frames so far, the actions and the robot's states.

    As published with V-JEPA 2-AC (arXiv:2506.09985, section 3), with its keys. A time step is an action token, a state
    token, one of extrinsics where the model takes them, and the patches of a frame; a token sees its own step and
    those before. Tokens of conditions have the time of their step as their only rotary position.
    """

    def __init__(self, config: ActionPredictorConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.predictor_embed = Linear(config.encoder_dim, dim)
        self.action_encoder = Linear(config.action_dim, dim)
        self.state_encoder = Linear(config.action_dim, dim)
        self.extrinsics_encoder = Linear(config.action_dim - 1, dim)  # in the published files, used or not
        self.predictor_blocks = Blocks(
            Block(dim, config.num_heads, MLP_RATIO * dim) for _ in range(config.depth)
        )
        self.predictor_norm = LayerNorm(dim)
        self.predictor_proj = Linear(dim, config.encoder_dim)

    def forward(
        self,
        x: Tensor,
        actions: Tensor,
        states: Tensor,
        extrinsics: Tensor | None = None,
        *,
        sides: tuple[int, int] | None = None,
    ) -> Tensor:
        """Predicts, for each time step t, the frame of step t + 1.

        Args:
            x: `[B, T * patches, encoder_dim]`, encoded frames after LayerNorm without affine.
            actions, states: `[B, T, action_dim]`. extrinsics: `[B, T, action_dim - 1]`, where the model takes them.
            sides: rows and columns of patches, if not `side` each; positions are scaled by side / rows and columns.

        Returns:
            `[B, T * patches, encoder_dim]` in the compute dtype.

        Raises:
            ValueError: shapes that do not fit, or extrinsics that are missing or not taken.
        """
        rows, columns = sides or (self.config.side, self.config.side)
        batch, steps = actions.shape[:2]
        conditions = [self.action_encoder(actions), self.state_encoder(states)]
        if (extrinsics is not None) != self.config.extrinsics:
            raise ValueError(
                f"extrinsics: expected {'[B, T, 6]' if self.config.extrinsics else 'None'}, got "
                f"{'None' if extrinsics is None else list(extrinsics.shape)}"
            )
        if extrinsics is not None:
            conditions.append(self.extrinsics_encoder(extrinsics))
        if x.ndim != 3 or x.shape[:2] != (batch, steps * rows * columns):
            raise ValueError(
                f"x: expected [{batch}, {steps * rows * columns}, {self.config.encoder_dim}], got {list(x.shape)}"
            )
        patches = self.predictor_embed(x).unflatten(1, (steps, rows * columns))
        tokens = torch.cat([torch.stack(conditions, dim=2), patches], dim=2)  # [B, T, C + patches, dim]
        per_step = tokens.shape[2]
        ids = torch.arange(rows * columns, device=x.device)
        place = token_positions(ids, (rows, columns)) * torch.tensor(
            [1.0, self.config.side / rows, self.config.side / columns], device=x.device, dtype=torch.float64
        )
        positions = torch.cat([place.new_zeros(len(conditions), 3), place]).repeat(steps, 1, 1)
        positions[:, :, 0] = torch.arange(steps, device=x.device)[:, None]
        layout = Layout(
            BlockCausal(per_step), rotary(positions.flatten(0, 1), "tiled", self.predictor_norm.weight.dtype)
        )
        out = self.predictor_blocks(tokens.flatten(1, 2), self.predictor_norm, layout=layout)
        out = out.unflatten(1, (steps, per_step))[:, :, len(conditions) :]
        return self.predictor_proj(out.flatten(1, 2))
