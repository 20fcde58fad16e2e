"""V-JEPA 2-AC's predictor and training step as the published code computes them, to compare with."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.bench.baselines.attention import block_causal_mask, vjepa2_positions, vjepa2_rotary
from jepa_fast.bench.baselines.ijepa import EagerMLP
from jepa_fast.bench.baselines.vjepa import EagerVideoEncoder
from jepa_fast.models import VJEPA2AC, VJEPA2ACConfig, VJEPAConfig
from jepa_fast.training.action_step import Trajectories
from jepa_fast.training.step import Precision, parameter_groups, set_rates


class EagerActionAttention(nn.Module):
    """Queries, keys and values of each kind of condition by themselves, then of the patches; SDPA with a dense mask."""

    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.side = side
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor, steps: int, conditions: int) -> Tensor:
        batch, tokens, dim = x.shape
        by_step = x.view(batch, steps, -1, dim)
        time = torch.arange(steps, device=x.device)
        still = torch.zeros_like(time)
        parts = [
            self._rotated(by_step[:, :, number], [time, still, still]).unflatten(3, (steps, 1))
            for number in range(conditions)
        ]
        frames = by_step[:, :, conditions:].flatten(1, 2)
        ids = torch.arange(frames.shape[1], device=x.device)
        positions = vjepa2_positions(ids, self.side, self.side)
        parts.append(self._rotated(frames, positions).unflatten(3, (steps, -1)))
        query, key, value = torch.cat(parts, dim=4).flatten(3, 4)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))

    def _rotated(self, x: Tensor, positions: list[Tensor]) -> Tensor:
        """`[3, B, heads, N, head_dim]`."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return torch.stack([vjepa2_rotary(query, positions), vjepa2_rotary(key, positions), value])


class EagerActionBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_dim: int, side: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = EagerActionAttention(dim, num_heads, side)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = EagerMLP(dim, mlp_dim)

    def forward(self, x: Tensor, mask: Tensor, steps: int, conditions: int) -> Tensor:
        x = x + self.attn(self.norm1(x), mask, steps, conditions)
        return x + self.mlp(self.norm2(x))


class EagerActionPredictor(nn.Module):
    """Each time step is action, state, extrinsics where there are any, and the patches of a frame."""

    def __init__(self, config: VJEPA2ACConfig) -> None:
        super().__init__()
        dim, side = config.predictor_dim, config.image_size // config.patch_size
        self.predictor_embed = nn.Linear(config.dim, dim)
        self.action_encoder = nn.Linear(config.action_dim, dim)
        self.state_encoder = nn.Linear(config.action_dim, dim)
        self.extrinsics_encoder = nn.Linear(config.action_dim - 1, dim)
        self.predictor_blocks = nn.ModuleList(
            EagerActionBlock(dim, config.predictor_heads, 4 * dim, side)
            for _ in range(config.predictor_depth)
        )
        self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)
        self.predictor_proj = nn.Linear(dim, config.dim)

    def forward(self, x: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None) -> Tensor:
        batch, steps = actions.shape[:2]
        tokens = [self.action_encoder(actions).unsqueeze(2), self.state_encoder(states).unsqueeze(2)]
        if extrinsics is not None:
            tokens.append(self.extrinsics_encoder(extrinsics).unsqueeze(2))
        conditions = len(tokens)
        frames = self.predictor_embed(x).view(batch, steps, -1, tokens[0].shape[-1])
        x = torch.cat([*tokens, frames], dim=2).flatten(1, 2)
        mask = block_causal_mask(steps, conditions + frames.shape[2], x.device)
        for block in self.predictor_blocks:
            x = block(x, mask, steps, conditions)
        x = x.view(batch, steps, -1, x.shape[-1])[:, :, conditions:].flatten(1, 2)
        return self.predictor_proj(self.predictor_norm(x))


class EagerVJEPA2ACStep:
    """The published training step, with the interface of `jepa_fast.training.action_step.VJEPA2ACStep`.

    Left out, in favour of this baseline: the second encoder that the published code gives to the optimizer and never
    uses, the mask of 512 frames that it cuts, the gradient scaler, and activation checkpointing.

    `model` gives the weights, which are copied; its modules are not used.
    """

    rollout = 2

    def __init__(self, model: VJEPA2AC, *, precision: Precision = "float32") -> None:
        reference, config = next(model.parameters()), model.config
        self.precision = precision
        sizes = (config.dim, config.depth, config.num_heads, config.mlp_dim)
        encoder = VJEPAConfig(
            config.image_size, config.tubelet, *sizes, patch_size=config.patch_size, tubelet=config.tubelet
        )
        self.tubelet = config.tubelet
        self.encoder = EagerVideoEncoder(encoder).to(reference)
        self.encoder.load_state_dict(model.encoder.state_dict())
        self.encoder.requires_grad_(False)
        self.predictor = EagerActionPredictor(config).to(reference)
        self.predictor.load_state_dict(model.predictor.state_dict())
        self.optimizer = torch.optim.AdamW(parameter_groups(self.predictor))

    def step(
        self, batch: Trajectories, masks: None, *, lr: float, weight_decay: float, momentum: float
    ) -> Tensor:
        """See `VJEPA2ACStep.step`."""
        device = batch.pixels.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            with torch.no_grad():
                target = self._target(batch.pixels)
            tokens = target.shape[1] // batch.pixels.shape[2]
            forced = self._predict(target[:, :-tokens], batch, batch.actions.shape[1])
            rolled = torch.cat([target[:, :tokens], forced[:, :tokens]], dim=1)
            for number in range(1, self.rollout):
                following = self._predict(rolled, batch, number + 1)[:, -tokens:]
                rolled = torch.cat([rolled, following], dim=1)
            loss = _distance(forced, target, tokens) + _distance(rolled[:, tokens:], target, tokens)
        loss.backward()
        set_rates(self.optimizer, lr, weight_decay)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _target(self, pixels: Tensor) -> Tensor:
        frames = pixels.permute(0, 2, 1, 3, 4).flatten(0, 1).unsqueeze(2).repeat(1, 1, self.tubelet, 1, 1)
        target = self.encoder(frames)
        target = target.view(len(pixels), -1, target.shape[-1])
        return F.layer_norm(target, target.shape[-1:])

    def _predict(self, x: Tensor, batch: Trajectories, steps: int) -> Tensor:
        extrinsics: Any = None if batch.extrinsics is None else batch.extrinsics[:, :steps]
        out = self.predictor(x, batch.actions[:, :steps], batch.states[:, :steps], extrinsics)
        return F.layer_norm(out, out.shape[-1:])


def _distance(prediction: Tensor, target: Tensor, tokens: int) -> Tensor:
    """With the exponent as a number that happens to be 1."""
    wanted = target[:, tokens : prediction.shape[1] + tokens]
    return torch.mean(torch.abs(prediction - wanted) ** 1.0) / 1.0
