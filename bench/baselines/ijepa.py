"""I-JEPA as its published training code computes it, to compare with."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jepa_fast.bench.baselines.ema import ema_loop_
from jepa_fast.bench.baselines.latent_loss import latent_loss
from jepa_fast.masks import Masks
from jepa_fast.models import IJEPA, IJEPAConfig
from jepa_fast.training.step import PARTS, Precision, parameter_groups, set_rates


class EagerAttention(nn.Module):
    """Softmax attention step by step; the probabilities are returned beside the output."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        probability = ((query @ key.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        out = (probability @ value).transpose(1, 2).reshape(batch, tokens, dim)
        return self.proj(out), probability


class EagerMLP(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class EagerBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = EagerAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = EagerMLP(dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        update, _ = self.attn(self.norm1(x))
        x = x + update
        return x + self.mlp(self.norm2(x))


def gather_masks(x: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Tokens of `x [B, N, D]` for every mask `[B, K]`, concatenated on the batch; the index is repeated over D."""
    return torch.cat([x.gather(1, mask.unsqueeze(-1).repeat(1, 1, x.shape[-1])) for mask in masks])


class EagerPatchEmbed(nn.Module):
    """A convolution over every patch."""

    def __init__(self, config: IJEPAConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, config.patch_size, config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class EagerEncoder(nn.Module):
    """Embeds every patch, and then gathers the tokens that the masks keep."""

    def __init__(self, config: IJEPAConfig) -> None:
        super().__init__()
        num_patches = (config.image_size // config.patch_size) ** 2
        self.patch_embed = EagerPatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.empty(1, num_patches, config.dim), requires_grad=False)
        self.blocks = nn.ModuleList(
            EagerBlock(config.dim, config.num_heads, config.mlp_dim) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)

    def forward(self, pixels: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        x = self.patch_embed(pixels) + self.pos_embed
        if masks is not None:
            x = gather_masks(x, masks)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class EagerPredictor(nn.Module):
    """Runs every block over context and target tokens, and projects the targets at the end."""

    def __init__(self, config: IJEPAConfig) -> None:
        super().__init__()
        dim = config.predictor_dim
        num_patches = (config.image_size // config.patch_size) ** 2
        self.predictor_embed = nn.Linear(config.dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.predictor_pos_embed = nn.Parameter(torch.empty(1, num_patches, dim), requires_grad=False)
        self.predictor_blocks = nn.ModuleList(
            EagerBlock(dim, config.num_heads, 4 * dim) for _ in range(config.predictor_depth)
        )
        self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)
        self.predictor_proj = nn.Linear(dim, config.dim)

    def forward(
        self, context: Tensor, context_masks: Sequence[Tensor], target_masks: Sequence[Tensor]
    ) -> Tensor:
        batch = len(context) // len(context_masks)
        position = self.predictor_pos_embed.repeat(batch, 1, 1)
        x = self.predictor_embed(context)
        x += gather_masks(position, context_masks)
        num_context = x.shape[1]

        targets = [mask for mask in target_masks for _ in context_masks]
        query = gather_masks(position, targets)
        query = self.mask_token.repeat(len(query), query.shape[1], 1) + query
        x = torch.cat([x.repeat(len(target_masks), 1, 1), query], dim=1)
        for block in self.predictor_blocks:
            x = block(x)
        x = self.predictor_norm(x)
        return self.predictor_proj(x[:, num_context:])


class EagerIJEPAStep:
    """The published training step, with the interface of `jepa_fast.training.step.IJEPAStep`.

    Manual softmax attention, autocast in bfloat16, LayerNorm of all target tokens before their gather, AdamW as
    PyTorch chooses it, one teacher parameter after the other. Left out, in favour of this baseline: the gradient
    scaler, the logging of gradient norms, and the synchronisation of the published loop.

    `model` gives the initial weights, which are copied; its modules are not used.
    """

    def __init__(
        self, model: IJEPA, *, precision: Precision = "float32", teacher: nn.Module | None = None
    ) -> None:
        reference = next(model.parameters())
        self.precision = precision
        self.encoder = EagerEncoder(model.config).to(reference)
        self.predictor = EagerPredictor(model.config).to(reference)
        self.encoder.load_state_dict(model.encoder.state_dict())
        self.predictor.load_state_dict(model.predictor.state_dict())
        self.teacher = copy.deepcopy(self.encoder)
        if teacher is not None:
            self.teacher.load_state_dict(teacher.state_dict())
        self.teacher.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.encoder, self.predictor))

    def step(
        self, pixels: Tensor, masks: Masks, *, lr: float, weight_decay: float, momentum: float
    ) -> Tensor:
        """See `IJEPAStep.step`."""
        context_masks, target_masks = (rows.split(len(pixels)) for rows in masks)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            with torch.no_grad():
                target = self.teacher(pixels)
            context = self.encoder(pixels, context_masks)
            prediction = self.predictor(context, context_masks, target_masks)
            targets = [mask for mask in target_masks for _ in context_masks]
            loss = latent_loss(prediction, target, targets)
        loss.backward()
        set_rates(self.optimizer, lr, weight_decay)
        self.optimizer.step()
        self.optimizer.zero_grad()
        ema_loop_(list(self.teacher.parameters()), list(self.encoder.parameters()), momentum)
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        return {part: getattr(self, part).state_dict() for part in PARTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part in PARTS:
            getattr(self, part).load_state_dict(state[part])
