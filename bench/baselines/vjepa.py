"""V-JEPA, V-JEPA 2 and V-JEPA 2.1 as their published training code computes them, to compare with."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.bench.baselines.attention import vjepa2_positions, vjepa2_rotary
from jepa_fast.bench.baselines.ema import ema_loop_
from jepa_fast.bench.baselines.ijepa import EagerMLP, gather_masks
from jepa_fast.masks import Masks
from jepa_fast.models import VJEPA, VJEPAConfig
from jepa_fast.training.step import PARTS, Precision, parameter_groups, set_rates

REFERENCE_SIDE = 16  # of the grid to which V-JEPA 2.1 scales rows and columns
VARIANCE_EPS = 1e-4


class Grid:
    """Where token ids lie, and how a system rotates them."""

    def __init__(self, config: VJEPAConfig) -> None:
        self.side = config.image_size // config.patch_size
        self.rotary = config.positions != "sincos"
        self.interleaved = config.positions == "interleaved"
        self.scale = (REFERENCE_SIDE - 1) / (self.side - 1) if self.interleaved else 1.0

    def positions(self, ids: Tensor) -> list[Tensor]:
        frame, row, column = vjepa2_positions(ids, self.side, self.side)
        if self.scale == 1.0:
            return [frame, row, column]
        return [frame, row * self.scale, column * self.scale]


class EagerVideoAttention(nn.Module):
    """SDPA; where positions are rotary, each layer takes them from the ids, repeated over heads, and rotates axis by
    axis."""

    def __init__(self, dim: int, num_heads: int, grid: Grid) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.grid = grid
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, ids: Tensor | None) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        if self.grid.rotary:
            if ids is None:
                ids = torch.arange(tokens, device=x.device)
            else:
                ids = ids.unsqueeze(1).repeat(1, self.num_heads, 1)
            positions = self.grid.positions(ids)
            query = vjepa2_rotary(query, positions, interleaved=self.grid.interleaved)
            key = vjepa2_rotary(key, positions, interleaved=self.grid.interleaved)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))


class EagerVideoBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_dim: int, grid: Grid) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = EagerVideoAttention(dim, num_heads, grid)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = EagerMLP(dim, mlp_dim)

    def forward(self, x: Tensor, ids: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), ids)
        return x + self.mlp(self.norm2(x))


class EagerTubelets(nn.Module):
    """A convolution over every patch of the clip."""

    def __init__(self, config: VJEPAConfig, tubelet: int) -> None:
        super().__init__()
        size = (tubelet, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.dim, size, size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class EagerVideoEncoder(nn.Module):
    """Embeds every patch, and then gathers the tokens that one mask keeps."""

    def __init__(self, config: VJEPAConfig) -> None:
        super().__init__()
        self.config = config
        grid = Grid(config)
        self.patch_embed = EagerTubelets(config, config.tubelet)
        if config.hierarchical:
            self.patch_embed_img = EagerTubelets(config, 1)
            self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, config.dim))
            self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, config.dim))
        if not grid.rotary:
            patches = config.frames // config.tubelet * grid.side**2
            self.pos_embed = nn.Parameter(torch.empty(1, patches, config.dim), requires_grad=False)
        self.blocks = nn.ModuleList(
            EagerVideoBlock(config.dim, config.num_heads, config.mlp_dim, grid) for _ in range(config.depth)
        )
        if config.hierarchical:
            self.norms_block = nn.ModuleList(nn.LayerNorm(config.dim, eps=1e-6) for _ in range(4))
        else:
            self.norm = nn.LayerNorm(config.dim, eps=1e-6)

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        config = self.config
        image = config.hierarchical and pixels.shape[2] == 1
        x = self.patch_embed_img(pixels) if image else self.patch_embed(pixels)
        if config.hierarchical:
            vector = self.img_mod_embed if image else self.video_mod_embed
            x += vector.repeat(len(x), 1, 1)
        if config.positions == "sincos":
            x += self.pos_embed
        if mask is not None:
            x = gather_masks(x, [mask])
        levels = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, mask)
            if config.hierarchical and number * 4 % config.depth == 0:
                levels.append(self.norms_block[number * 4 // config.depth - 1](x))
        if not config.hierarchical:
            return self.norm(x)
        return torch.cat(levels, dim=2) if config.levels > 1 else levels[-1]


class EagerVideoPredictor(nn.Module):
    """One mask set at a time: sorts context and mask tokens by their ids, sample by sample, and sorts them back."""

    def __init__(self, config: VJEPAConfig) -> None:
        super().__init__()
        self.config = config
        dim, grid = config.predictor_dim, Grid(config)
        self.patches = config.frames // config.tubelet * grid.side**2
        if config.levels > 1:
            self.predictor_embed: nn.Module = nn.Sequential(
                nn.Linear(config.levels * config.dim, config.dim), nn.GELU(), nn.Linear(config.dim, dim)
            )
        else:
            self.predictor_embed = nn.Linear(config.dim, dim)
        self.mask_tokens = nn.ParameterList(
            nn.Parameter(torch.zeros(1, 1, dim)) for _ in range(config.mask_tokens)
        )
        if config.hierarchical:
            self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, dim))
            self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, dim))
        self.rotary = grid.rotary
        if not grid.rotary:
            self.predictor_pos_embed = nn.Parameter(torch.empty(1, self.patches, dim), requires_grad=False)
        self.predictor_blocks = nn.ModuleList(
            EagerVideoBlock(dim, config.predictor_heads, 4 * dim, grid) for _ in range(config.predictor_depth)
        )
        self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)
        out_dim = config.teacher_dim or config.levels * config.dim
        self.predictor_proj = nn.Linear(dim, out_dim)
        if config.hierarchical:
            self.predictor_proj_context = nn.Linear(dim, out_dim)

    def forward(
        self, context: Tensor, context_mask: Tensor, target_mask: Tensor, number: int, image: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        batch = len(context)
        x = self.predictor_embed(context)
        num_context = x.shape[1]
        token = self.mask_tokens[number if self.config.token_per_set else 0]
        query = gather_masks(token.repeat(batch, self.patches, 1), [target_mask])
        if not self.rotary:
            position = self.predictor_pos_embed.repeat(batch, 1, 1)
            x += gather_masks(position, [context_mask])
            query = query + gather_masks(position, [target_mask])
        x = torch.cat([x, query], dim=1)
        if not self.rotary:  # V-JEPA leaves the tokens in this order
            for block in self.predictor_blocks:
                x = block(x, None)
            return self.predictor_proj(self.predictor_norm(x)[:, num_context:]), None

        ids = torch.cat([context_mask, target_mask], dim=1)
        order = torch.argsort(ids, dim=1)
        ids = torch.stack([ids[sample, row] for sample, row in enumerate(order)])
        x = torch.stack([x[sample, row] for sample, row in enumerate(order)])
        if self.config.hierarchical:
            x = x + (self.img_mod_embed if image else self.video_mod_embed).repeat(batch, 1, 1)
        for block in self.predictor_blocks:
            x = block(x, ids)
        x = self.predictor_norm(x)
        back = torch.argsort(order, dim=1)
        x = torch.stack([x[sample, row] for sample, row in enumerate(back)])
        prediction = self.predictor_proj(x[:, num_context:])
        if not self.config.hierarchical:
            return prediction, None
        return prediction, self.predictor_proj_context(x[:, :num_context])


class EagerVJEPAStep:
    """The published training step, with the interface of `jepa_fast.training.vjepa_step.VJEPAStep`.

    Autocast in bfloat16, one pass of encoder and predictor for each mask set, LayerNorm of all target tokens before
    their gather, AdamW as PyTorch chooses it; the teacher one parameter after the other for V-JEPA, in lists for its
    successors. Left out, in favour of this baseline: the gradient scaler, logging, and synchronisations.

    `model` gives the initial weights, which are copied; its modules are not used.
    """

    context_weight = 0.5
    by_distance = True

    def __init__(
        self, model: VJEPA, *, precision: Precision = "float32", teacher: nn.Module | None = None
    ) -> None:
        reference = next(model.parameters())
        self.config = model.config
        self.precision = precision
        self.encoder = EagerVideoEncoder(model.config).to(reference)
        self.predictor = EagerVideoPredictor(model.config).to(reference)
        self.encoder.load_state_dict(model.encoder.state_dict())
        self.predictor.load_state_dict(model.predictor.state_dict())
        self.teacher = copy.deepcopy(self.encoder)
        if teacher is not None:
            self.teacher.load_state_dict(teacher.state_dict())
        self.teacher.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.encoder, self.predictor))

    def step(
        self, batch: Tensor, masks: Sequence[Masks], *, lr: float, weight_decay: float, momentum: float
    ) -> Tensor:
        """See `VJEPAStep.step`."""
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            with torch.no_grad():
                target = self._normalized(self.teacher(batch))
            context = [self.encoder(batch, one.context) for one in masks]
            image = self.config.hierarchical and batch.shape[2] == 1
            predictions = [
                self.predictor(z, one.context, one.target, number, image)
                for number, (z, one) in enumerate(zip(context, masks, strict=True))
            ]
            loss = _mean(
                [
                    _distance(z, gather_masks(target, [one.target]))
                    for (z, _), one in zip(predictions, masks, strict=True)
                ]
            )
            if self.config.hierarchical:
                loss = loss + self.context_weight * self._context_loss(predictions, target, masks)
            elif self.config.positions == "sincos":
                loss = loss + 0.0 * _variance([z for z, _ in predictions])
        loss.backward()
        set_rates(self.optimizer, lr, weight_decay)
        self.optimizer.step()
        self.optimizer.zero_grad()
        teacher: list[Tensor] = list(self.teacher.parameters())
        encoder: list[Tensor] = list(self.encoder.parameters())
        if self.config.positions == "sincos":
            ema_loop_(teacher, encoder, momentum)
        else:
            with torch.no_grad():
                torch._foreach_mul_(teacher, momentum)
                torch._foreach_add_(teacher, encoder, alpha=1.0 - momentum)
        return loss.detach()

    def _normalized(self, target: Tensor) -> Tensor:
        levels = self.config.levels
        parts = target.chunk(levels, dim=2)
        return torch.cat([F.layer_norm(part, part.shape[-1:]) for part in parts], dim=2)

    def _context_loss(
        self, predictions: Sequence[tuple[Tensor, Tensor | None]], target: Tensor, masks: Sequence[Masks]
    ) -> Tensor:
        losses = []
        grid = self.config.image_size // self.config.patch_size
        for (_, z), one in zip(predictions, masks, strict=True):
            assert z is not None
            distance = mask_distance(one.target, one.context, grid)
            error = (z - gather_masks(target, [one.context])).abs()
            if self.by_distance:
                error = error * (1 / distance.unsqueeze(2))
            losses.append(error.mean())
        return _mean(losses)

    def state_dict(self) -> dict[str, Any]:
        return {part: getattr(self, part).state_dict() for part in PARTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part in PARTS:
            getattr(self, part).load_state_dict(state[part])


def mask_distance(target_mask: Tensor, context_mask: Tensor, side: int) -> Tensor:
    """Root of the distance of each context token to the nearest target `[B, Nc]`, one token after the other."""
    target = torch.stack(vjepa2_positions(target_mask, side, side), dim=-1).float()
    context = torch.stack(vjepa2_positions(context_mask, side, side), dim=-1).float()
    nearest = [
        torch.cdist(context[:, token : token + 1], target).amin(dim=2) for token in range(context.shape[1])
    ]
    return torch.cat(nearest, dim=1).sqrt()


def _distance(prediction: Tensor, target: Tensor) -> Tensor:
    """With the exponent as a number that happens to be 1."""
    return torch.mean(torch.abs(prediction - target) ** 1.0) / 1.0


def _mean(losses: Sequence[Tensor]) -> Tensor:
    total: Any = 0
    for loss in losses:
        total = total + loss
    return total / len(losses)


def _variance(predictions: Sequence[Tensor]) -> Tensor:
    """V-JEPA's regulariser, which its configurations weigh with 0 and whose gradient is formed all the same."""
    deviation: Any = 0
    for z in predictions:
        deviation = deviation + torch.sqrt(z.var(dim=1) + VARIANCE_EPS)
    return torch.mean(F.relu(1.0 - deviation / len(predictions)))
