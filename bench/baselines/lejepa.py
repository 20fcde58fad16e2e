"""LeJEPA as its published training code computes it, to compare with."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.bench.baselines.ijepa import EagerMLP
from jepa_fast.bench.baselines.sigreg import sigreg, unit_directions
from jepa_fast.models import LeJEPA, LeJEPAConfig
from jepa_fast.training.step import Precision, parameter_groups, set_rates


class EagerClassAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(out.transpose(1, 2).flatten(2))


class EagerClassBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = EagerClassAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = EagerMLP(dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class EagerPatches(nn.Module):
    def __init__(self, config: LeJEPAConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, config.patch_size, config.patch_size)


class EagerClassEncoder(nn.Module):
    """A vision transformer with class token and learned positions, as timm has it."""

    def __init__(self, config: LeJEPAConfig) -> None:
        super().__init__()
        self.side = config.image_size // config.patch_size
        self.patch_embed = EagerPatches(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2 + 1, config.dim))
        self.blocks = nn.ModuleList(
            EagerClassBlock(config.dim, config.num_heads, config.mlp_dim) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed.proj(images)
        side = x.shape[-1]
        x = x.flatten(2).transpose(1, 2)
        first, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if side != self.side:
            table = patches.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
            table = F.interpolate(table.float(), size=(side, side), mode="bicubic", antialias=True)
            patches = table.to(patches.dtype).permute(0, 2, 3, 1).flatten(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + torch.cat([first, patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class EagerLeJEPAStep:
    """The published training step, with the interface of `jepa_fast.training.lejepa_step.LeJEPAStep`.

    `model` gives the initial weights, which are copied. `directions(step)`, `[proj_dim, num_slices]`, takes the place
    of those that a generator draws anew in each step, so that two programs can be compared.
    """

    def __init__(
        self,
        model: LeJEPA,
        *,
        precision: Precision = "float32",
        weight: float = 0.02,
        num_slices: int = 1024,
        directions: Any = None,
    ) -> None:
        reference = next(model.parameters())
        self.config, self.precision = model.config, precision
        self.weight, self.num_slices, self.directions = weight, num_slices, directions
        self.encoder = EagerClassEncoder(model.config).to(reference)
        self.encoder.load_state_dict(model.encoder.state_dict())
        self.head = nn.Linear(model.config.dim, model.config.embed_dim).to(reference)
        self.head.load_state_dict(model.head.state_dict())
        self.projector = nn.Sequential(*_plain(copy.deepcopy(model.projector)))
        self.optimizer = torch.optim.AdamW(parameter_groups(self.encoder, self.head, self.projector))
        self.counter = 0

    def step(
        self, batch: Sequence[Tensor], masks: None, *, lr: float, weight_decay: float, momentum: float
    ) -> Tensor:
        """See `LeJEPAStep.step`."""
        device, images = batch[0].device, batch[0].shape[1]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            tokens = torch.cat([self.encoder(views.flatten(0, 1))[:, 0] for views in batch])
            projection = self.projector(self.head(tokens)).unflatten(0, (-1, images))
            if self.directions is None:
                drawn = unit_directions(self.config.proj_dim, self.num_slices, self.counter, device)
            else:
                drawn = self.directions(self.counter)
            invariance = (projection[: len(batch[0])].mean(0) - projection).square().mean()
            loss = self.weight * sigreg(projection, drawn.to(batch[0].dtype))
            loss = loss + (1.0 - self.weight) * invariance
        loss.backward()
        set_rates(self.optimizer, lr, weight_decay)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.counter += 1
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        parts = ("encoder", "head", "projector", "optimizer")
        return {part: getattr(self, part).state_dict() for part in parts} | {"counter": self.counter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part in ("encoder", "head", "projector", "optimizer"):
            getattr(self, part).load_state_dict(state[part])
        self.counter = int(state["counter"])


def _plain(layers: nn.Sequential) -> list[nn.Module]:
    """The same weights in PyTorch's own layers."""
    plain: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.Linear):
            linear = nn.Linear(layer.in_features, layer.out_features).to(layer.weight)
            linear.load_state_dict(layer.state_dict())
            plain.append(linear)
        else:
            plain.append(layer)
    return plain
