"""Attention with 3-D rotary positions of facebookresearch/vjepa2: V-JEPA 2, 2-AC and 2.1."""

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jepa_fast.accelerate import rotary
from jepa_fast.accelerate.adapter import Adapter, Sample, Signatures, draw, original
from jepa_fast.accelerate.frame_causal import FrameCausal
from jepa_fast.accelerate.layers import attend
from jepa_fast.kernels.rope.positions import Rope3D

from .qkv import REFUSED, sdpa_dropout, sdpa_scale, served_mask, split

TABLE = "fair_autocast"


class RopeAttention(Adapter):
    """`RoPEAttention` of V-JEPA 2, with the pairing that its weights were trained with."""

    name = "vjepa2_rope_attention"
    kind = "attention"
    title = "masked_attention with Rope3D"
    class_names = ("RoPEAttention",)
    attributes: ClassVar[dict[str, Any]] = {
        "num_heads": int,
        "head_dim": int,
        "scale": float,
        "qkv": nn.Module,
        "attn_drop": nn.Module,
        "proj": nn.Module,
        "proj_drop_prob": (int, float),
        "proj_drop": nn.Module,
        "use_sdpa": bool,
        "d_dim": int,
        "h_dim": int,
        "w_dim": int,
        "grid_size": int,
        "is_causal": bool,
    }
    signatures: ClassVar[Signatures] = (("x", "mask", "attn_mask", "T", "H_patches", "W_patches"),)

    def more_reasons(self, module: Any) -> list[str]:
        segment = 2 * (module.head_dim // 3 // 2)
        return [
            f"attribute {name}: expected {segment}, got {getattr(module, name)}"
            for name in ("d_dim", "h_dim", "w_dim")
            if getattr(module, name) != segment
        ]

    def samples(self, module: Any) -> list[Sample]:
        width = module.qkv.in_features
        ids = torch.stack([torch.randperm(3 * 5 * 4)[:9] for _ in range(2)])
        of_grid = torch.stack([torch.randperm(2 * module.grid_size**2)[:2] for _ in range(2)])
        return [
            Sample((draw(2, 2 * 5 * 4, width),), {"T": 2, "H_patches": 5, "W_patches": 4}),
            Sample((draw(2, 9, width),), {"mask": ids, "T": 3, "H_patches": 5, "W_patches": 4}),
            Sample((draw(2, of_grid.shape[1], width),), {"mask": of_grid}),
        ]

    @staticmethod
    def forward(
        self: Any,
        x: Tensor,
        mask: Tensor | None = None,
        attn_mask: Any = None,
        T: int | None = None,
        H_patches: int | None = None,
        W_patches: int | None = None,
    ) -> Tensor:
        form = served_mask(self, attn_mask)
        rope = _rope(self, x, mask, T, H_patches, W_patches)
        if form is REFUSED or rope is None or sdpa_dropout(self) > 0.0:
            return original(self)(self, x, mask, attn_mask, T, H_patches, W_patches)
        query, key, value = split(self, x)
        scale = None if attn_mask is not None else sdpa_scale(self)
        return self.proj_drop(self.proj(attend(query, key, value, mask=form, rope=rope, scale=scale)))


def _rope(
    self: Any,
    x: Tensor,
    mask: Tensor | None,
    frames: int | None,
    rows: int | None,
    columns: int | None,
    pairing: str = "tiled",
    scale: tuple[float, float] = (1, 1),
) -> Rope3D | None:
    """Positions as upstream finds them; None where it would find too many or too few."""
    side, tokens = self.grid_size, x.shape[1]
    height, width = (rows, columns) if rows is not None and columns is not None else (side, side)
    options = {"table": TABLE, "pairing": pairing, "scale": scale}
    if mask is not None:
        return rotary.of_ids(mask, height, width, **options) if mask.shape == x.shape[:2] else None  # type: ignore[arg-type]
    count = (
        frames * height * width
        if None not in (frames, rows, columns) and frames is not None
        else tokens // side**2 * side**2
    )
    return rotary.of_grid(tokens, height, width, x.device, **options) if count == tokens else None  # type: ignore[arg-type]


class RopeAttention21(RopeAttention):
    """`RoPEAttention` of V-JEPA 2.1: the pairing is a rotation, and rows and columns are scaled to the grid of
    pre-training."""

    name = "vjepa21_rope_attention"
    attributes: ClassVar[dict[str, Any]] = {
        **RopeAttention.attributes,
        "interpolate_rope": bool,
        "n_registers": int,
        "has_cls_first": bool,
    }
    signatures: ClassVar[Signatures] = (("x", "mask", "T", "H_patches", "W_patches", "return_attn"),)

    def more_reasons(self, module: Any) -> list[str]:
        reasons = super().more_reasons(module)
        if module.n_registers or module.has_cls_first:
            reasons.append("attributes n_registers and has_cls_first: expected no tokens without a position")
        if module.interpolate_rope and not isinstance(getattr(module, "pretrained_grid_size", None), int):
            reasons.append("expected attribute pretrained_grid_size")
        return reasons

    @staticmethod
    def forward(  # type: ignore[override]
        self: Any,
        x: Tensor,
        mask: Tensor | None = None,
        T: int | None = None,
        H_patches: int | None = None,
        W_patches: int | None = None,
        return_attn: bool = False,
    ) -> Any:
        height = self.grid_size if H_patches is None else H_patches
        width = self.grid_size if W_patches is None else W_patches
        scale: tuple[float, float] = (1, 1)
        rope = None
        if not self.interpolate_rope or min(height, width) > 1:
            if self.interpolate_rope:
                last = self.pretrained_grid_size - 1
                scale = (last / (height - 1), last / (width - 1))
            rope = _rope(self, x, mask, T, H_patches, W_patches, "interleaved", scale)
        form = served_mask(self, None)
        if return_attn or rope is None or sdpa_dropout(self) > 0.0:
            return original(self)(self, x, mask, T, H_patches, W_patches, return_attn)
        query, key, value = split(self, x)
        out = attend(query, key, value, mask=form, rope=rope, scale=sdpa_scale(self))
        return self.proj_drop(self.proj(out)), None


class ActionAttention(RopeAttention):
    """`ACRoPEAttention` of V-JEPA 2-AC: conditioning tokens, which are rotated by their time step alone, are at row and
    column 0, where the other two segments do not turn; so all tokens share one projection and one table."""

    name = "vjepa2_ac_attention"
    class_names = ("ACRoPEAttention",)
    signatures: ClassVar[Signatures] = (("x", "mask", "attn_mask", "T", "H", "W", "action_tokens"),)

    def samples(self, module: Any) -> list[Sample]:
        width = module.qkv.in_features
        grid = {"T": 3, "H": 2, "W": 3}
        causal = FrameCausal(8, 24).dense()
        return [
            Sample((draw(2, 18, width),), grid),
            Sample((draw(2, 24, width),), {**grid, "attn_mask": causal, "action_tokens": 2}),
        ]

    @staticmethod
    def forward(
        self: Any,
        x: Tensor,
        mask: Tensor | None = None,
        attn_mask: Any = None,
        T: int | None = None,
        H: int | None = None,
        W: int | None = None,
        action_tokens: int = 0,
    ) -> Tensor:
        form = served_mask(self, attn_mask)
        refused = form is REFUSED or mask is not None or sdpa_dropout(self) > 0.0
        if refused or T is None or H is None or W is None or x.shape[1] != T * (action_tokens + H * W):
            return original(self)(self, x, mask, attn_mask, T, H, W, action_tokens)
        rope = _steps(T, H, W, action_tokens, self.grid_size, x.device)
        query, key, value = split(self, x)
        scale = None if attn_mask is not None else sdpa_scale(self)
        return self.proj_drop(self.proj(attend(query, key, value, mask=form, rope=rope, scale=scale)))


def _steps(frames: int, rows: int, columns: int, actions: int, side: int, device: torch.device) -> Rope3D:
    make = _make_steps if torch.compiler.is_compiling() else _kept_steps
    return make(frames, rows, columns, actions, side, device)


def _make_steps(
    frames: int, rows: int, columns: int, actions: int, side: int, device: torch.device
) -> Rope3D:
    ids = torch.arange(frames * rows * columns, device=device)
    patches = rotary.coordinates(ids, rows, columns, (side / rows, side / columns)).float()
    patches = patches.view(frames, rows * columns, 3)
    tokens = patches[:, :1] * patches.new_tensor([1.0, 0.0, 0.0])
    positions = torch.cat([tokens.expand(-1, actions, -1), patches], dim=1)
    return Rope3D(positions.flatten(0, 1), table=TABLE)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _kept_steps(*arguments: Any) -> Rope3D:
    return _make_steps(*arguments)
