"""Models with the class names, signatures, attributes and formulas that the code bases document, in our own words.

The tests of `test_checkouts.py` hold the adapters against the code bases themselves.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BASE = 10000.0


def rotate(x: Tensor, position: Tensor, tiled: bool = True) -> Tensor:
    """One axis of x `[B, H, N, S]`: channel c of a pair turns by its own angle if `tiled`, else by that of its pair."""
    half = x.shape[-1] // 2
    frequency = BASE ** -(torch.arange(half, dtype=x.dtype) / half)
    angle = position[..., None].to(x.dtype) * frequency
    by_channel = torch.cat([angle, angle], -1) if tiled else angle.repeat_interleave(2, -1)
    if by_channel.ndim == 3:
        by_channel = by_channel[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([-odd, even], -1).flatten(-2)
    return x * by_channel.cos() + turned * by_channel.sin()


def rotate_axes(x: Tensor, axes: list[Tensor], tiled: bool = True) -> Tensor:
    width = 2 * (x.shape[-1] // 3 // 2)
    parts = [rotate(x[..., i * width : (i + 1) * width], axis, tiled) for i, axis in enumerate(axes)]
    return torch.cat([*parts, x[..., len(axes) * width :]], -1)


def grid_axes(ids: Tensor, rows: int, columns: int) -> list[Tensor]:
    frame = ids // (rows * columns)
    return [frame, (ids - frame * rows * columns) // columns, ids % columns]


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int, act: nn.Module | None = None, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.act = nn.GELU() if act is None else act
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class _QKV(nn.Module):
    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(0.0)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def joined(self, out: Tensor) -> Tensor:
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class IJEPA:
    """facebookresearch/ijepa."""

    class Attention(_QKV):
        def forward(self, x):
            query, key, value = self.heads(x)
            weights = self.attn_drop((query @ key.mT * self.scale).softmax(-1))
            return self.joined(weights @ value), weights

    class Block(nn.Module):
        def __init__(self, dim: int, num_heads: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            self.attn, self.drop_path = IJEPA.Attention(dim, num_heads), nn.Identity()
            self.mlp = MLP(dim, 4 * dim)

        def forward(self, x, return_attention=False):
            update, weights = self.attn(self.norm1(x))
            if return_attention:
                return weights
            x = x + self.drop_path(update)
            return x + self.drop_path(self.mlp(self.norm2(x)))

    class VisionTransformerPredictor(nn.Module):
        def __init__(self, places: int, width: int, dim: int, num_heads: int) -> None:
            super().__init__()
            self.predictor_embed, self.predictor_proj = nn.Linear(width, dim), nn.Linear(dim, width)
            self.mask_token = nn.Parameter(torch.randn(1, 1, dim))
            self.predictor_pos_embed = nn.Parameter(torch.randn(1, places, dim), requires_grad=False)
            self.predictor_blocks = nn.ModuleList([IJEPA.Block(dim, num_heads) for _ in range(2)])
            self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)

        def forward(self, x, masks_x, masks):
            position = self.predictor_pos_embed[0]
            context = self.predictor_embed(x) + position[torch.cat(masks_x)]
            targets = torch.cat([m for mask in masks for m in [mask] * len(masks_x)])
            tokens = self.mask_token + position[targets]
            out = torch.cat([context.repeat(len(masks), 1, 1), tokens], 1)
            for block in self.predictor_blocks:
                out = block(out)
            return self.predictor_proj(self.predictor_norm(out)[:, x.shape[1] :])


class VJEPA2:
    """facebookresearch/vjepa2: V-JEPA 2 and 2-AC."""

    class _Rotary(_QKV):
        def __init__(self, dim: int, num_heads: int, grid_size: int) -> None:
            super().__init__(dim, num_heads)
            self.head_dim = dim // num_heads
            self.proj_drop_prob, self.use_sdpa, self.is_causal, self.grid_size = 0.0, True, False, grid_size
            self.d_dim = self.h_dim = self.w_dim = 2 * (self.head_dim // 3 // 2)

    class RoPEAttention(_Rotary):
        def forward(self, x, mask=None, attn_mask=None, T=None, H_patches=None, W_patches=None):
            query, key, value = self.heads(x)
            known = H_patches is not None and W_patches is not None
            rows, columns = (H_patches, W_patches) if known else (self.grid_size,) * 2
            axes = grid_axes(torch.arange(x.shape[1]) if mask is None else mask, rows, columns)
            query, key = rotate_axes(query, axes), rotate_axes(key, axes)
            return self.joined(F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask))

    class ACRoPEAttention(_Rotary):
        def forward(self, x, mask=None, attn_mask=None, T=None, H=None, W=None, action_tokens=0):
            step = action_tokens + H * W
            query, key, value = (t.unflatten(2, (T, step)) for t in self.heads(x))
            frame, row, column = grid_axes(torch.arange(T * H * W), H, W)
            patches = [frame, row * (self.grid_size / H), column * (self.grid_size / W)]

            def turned(t: Tensor) -> Tensor:
                of_patches = rotate_axes(t[:, :, :, action_tokens:].flatten(2, 3), patches).unflatten(
                    2, (T, H * W)
                )
                parts = [
                    rotate_axes(t[:, :, :, i], [torch.arange(T)])[:, :, :, None] for i in range(action_tokens)
                ]
                return torch.cat([*parts, of_patches], 3).flatten(2, 3)

            out = F.scaled_dot_product_attention(
                turned(query), turned(key), value.flatten(2, 3), attn_mask=attn_mask
            )
            return self.joined(out)

    class Block(nn.Module):
        def __init__(self, dim: int, num_heads: int, grid_size: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            self.attn = VJEPA2.RoPEAttention(dim, num_heads, grid_size)
            self.drop_path, self.mlp = nn.Identity(), MLP(dim, 4 * dim)

        def forward(self, x, mask=None, attn_mask=None, T=None, H_patches=None, W_patches=None):
            x = x + self.drop_path(self.attn(self.norm1(x), mask, attn_mask, T, H_patches, W_patches))
            return x + self.drop_path(self.mlp(self.norm2(x)))

    class ACBlock(nn.Module):
        def __init__(self, dim: int, num_heads: int, grid_size: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            self.attn = VJEPA2.ACRoPEAttention(dim, num_heads, grid_size)
            self.drop_path, self.mlp = nn.Identity(), MLP(dim, 4 * dim)

        def forward(self, x, mask=None, attn_mask=None, T=None, H=None, W=None, action_tokens=0):
            x = x + self.drop_path(self.attn(self.norm1(x), mask, attn_mask, T, H, W, action_tokens))
            return x + self.drop_path(self.mlp(self.norm2(x)))

    class VisionTransformerPredictor(nn.Module):
        def __init__(self, side: int, frames: int, width: int, dim: int, num_heads: int) -> None:
            super().__init__()
            self.predictor_embed, self.predictor_proj = nn.Linear(width, dim), nn.Linear(dim, width)
            self.mask_tokens = nn.ParameterList([nn.Parameter(torch.randn(1, 1, dim)) for _ in range(2)])
            self.num_mask_tokens, self.num_patches = 2, frames * side**2
            self.use_rope, self.chop_last_n_tokens = True, 0
            self.return_all_tokens = self.use_activation_checkpointing = False
            self.predictor_blocks = nn.ModuleList([VJEPA2.Block(dim, num_heads, side) for _ in range(2)])
            self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)

        def forward(self, x, masks_x, masks_y, mask_index=1, has_cls=False):
            token = self.mask_tokens[mask_index % self.num_mask_tokens]
            target = token.expand(len(x), masks_y[0].shape[1], -1)
            out, count = torch.cat([self.predictor_embed(x), target], 1), x.shape[1]
            ids, order = torch.cat([masks_x[0], masks_y[0]], 1).sort(1)
            out = out.take_along_dim(order[..., None], 1)
            for block in self.predictor_blocks:
                out = block(out, mask=ids)
            out = self.predictor_norm(out).take_along_dim(order.argsort(1)[..., None], 1)
            return self.predictor_proj(out[:, count:])

    class VisionTransformerPredictorAC(nn.Module):
        def __init__(self, side: int, frames: int, width: int, dim: int, num_heads: int) -> None:
            super().__init__()
            self.predictor_embed, self.predictor_proj = nn.Linear(width, dim), nn.Linear(dim, width)
            self.action_encoder, self.state_encoder = nn.Linear(7, dim), nn.Linear(7, dim)
            self.grid_height = self.grid_width = side
            self.use_extrinsics = False
            self.predictor_blocks = nn.ModuleList([VJEPA2.ACBlock(dim, num_heads, side) for _ in range(2)])
            self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)
            step = torch.arange(frames * (side**2 + 2)) // (side**2 + 2)
            self.attn_mask = step[:, None] >= step[None]

        def forward(self, x, actions, states, extrinsics=None):
            frames, side = actions.shape[1], self.grid_height
            x = self.predictor_embed(x).unflatten(1, (frames, -1))
            parts = [self.action_encoder(actions)[:, :, None], self.state_encoder(states)[:, :, None], x]
            x = torch.cat(parts, 2).flatten(1, 2)
            mask = self.attn_mask[: x.shape[1], : x.shape[1]].to(x.device, non_blocking=True)
            for block in self.predictor_blocks:
                x = block(x, attn_mask=mask, T=frames, H=side, W=side, action_tokens=2)
            x = x.unflatten(1, (frames, -1))[:, :, 2:].flatten(1, 2)
            return self.predictor_proj(self.predictor_norm(x))


class VJEPA21:
    """V-JEPA 2.1: a rotation, rows and columns scaled to the grid of pre-training, results in pairs."""

    class RoPEAttention(VJEPA2._Rotary):
        def __init__(self, dim: int, num_heads: int, grid_size: int) -> None:
            super().__init__(dim, num_heads, grid_size)
            self.n_registers, self.has_cls_first, self.interpolate_rope = 0, False, True
            self.pretrained_grid_size = 16

        def forward(self, x, mask=None, T=None, H_patches=None, W_patches=None, return_attn=False):
            query, key, value = self.heads(x)
            rows, columns = H_patches or self.grid_size, W_patches or self.grid_size
            frame, row, column = grid_axes(torch.arange(x.shape[1]) if mask is None else mask, rows, columns)
            last = self.pretrained_grid_size - 1
            axes = [frame, row * last / (rows - 1), column * last / (columns - 1)]
            query, key = rotate_axes(query, axes, tiled=False), rotate_axes(key, axes, tiled=False)
            return self.joined(F.scaled_dot_product_attention(query, key, value)), None

    class Block(nn.Module):
        def __init__(self, dim: int, num_heads: int, grid_size: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            self.attn, self.use_rope = VJEPA21.RoPEAttention(dim, num_heads, grid_size), True
            self.drop_path, self.mlp = nn.Identity(), MLP(dim, 4 * dim)

        def forward(
            self, x, mask=None, T=None, H_patches=None, W_patches=None, return_attn=False, mode="video"
        ):
            update, weights = self.attn(self.norm1(x), mask, T, H_patches, W_patches, return_attn)
            x = x + self.drop_path(update)
            return x + self.drop_path(self.mlp(self.norm2(x))), weights


class Timm:
    """timm."""

    class Attention(_QKV):
        def __init__(self, dim: int, num_heads: int, qk_norm: bool = False) -> None:
            super().__init__(dim, num_heads)
            self.fused_attn, self.head_dim = True, dim // num_heads
            self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
            self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()

        def forward(self, x, attn_mask=None, is_causal=False):
            query, key, value = self.heads(x)
            query, key = self.q_norm(query), self.k_norm(key)
            return self.joined(
                F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, is_causal=is_causal)
            )

    class Block(nn.Module):
        def __init__(self, dim: int, num_heads: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.attn, self.mlp = Timm.Attention(dim, num_heads), MLP(dim, 4 * dim)
            self.ls1, self.ls2 = nn.Identity(), nn.Identity()
            self.drop_path1, self.drop_path2 = nn.Identity(), nn.Dropout(0.5)

        def forward(self, x, attn_mask=None, is_causal=False):
            x = x + self.drop_path1(
                self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal))
            )
            return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class LeWM(nn.Module):
    """stable-worldmodel and le-wm: a predictor of blocks with AdaLN, whose rollout reads the last step of a window."""

    class Attention(nn.Module):
        def __init__(self, dim: int, heads: int, dim_head: int) -> None:
            super().__init__()
            self.heads, self.norm = heads, nn.LayerNorm(dim)
            self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
            self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(0.1))

        def forward(self, x, causal=True):
            parts = self.to_qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(*parts, is_causal=causal)
            return self.to_out(out.transpose(1, 2).flatten(2))

    class ConditionalBlock(nn.Module):
        def __init__(self, dim: int, heads: int, dim_head: int) -> None:
            super().__init__()
            self.attn = LeWM.Attention(dim, heads, dim_head)
            self.mlp = nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.GELU(), nn.Linear(3 * dim, dim)
            )
            self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
            self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

        def forward(self, x, c):
            a, b, gate, d, e, last_gate = self.adaLN_modulation(c).chunk(6, -1)
            x = x + gate * self.attn(self.norm1(x) * (1 + b) + a)
            return x + last_gate * self.mlp(self.norm2(x) * (1 + e) + d)

    class Transformer(nn.Module):
        def __init__(self, dim: int, heads: int, dim_head: int) -> None:
            super().__init__()
            self.input_proj = self.cond_proj = self.output_proj = nn.Identity()
            self.norm = nn.LayerNorm(dim)
            self.layers = nn.ModuleList([LeWM.ConditionalBlock(dim, heads, dim_head) for _ in range(2)])

        def forward(self, x, c):
            for block in self.layers:
                x = block(x, c)
            return self.output_proj(self.norm(x))

    class Predictor(nn.Module):
        def __init__(self, dim: int, frames: int = 3) -> None:
            super().__init__()
            self.num_frames, self.dropout = frames, nn.Dropout(0.0)
            self.pos_embedding = nn.Parameter(torch.randn(1, frames, dim))
            self.transformer = LeWM.Transformer(dim, 2, 8)

        def forward(self, x, c):
            return self.transformer(self.dropout(x + self.pos_embedding[:, : x.shape[1]]), c)

    def __init__(self, dim: int = 12) -> None:
        super().__init__()
        self.predictor, self.action_encoder = LeWM.Predictor(dim), nn.Linear(4, dim)
        self.pred_proj = nn.Sequential(nn.Linear(dim, 20), nn.BatchNorm1d(20), nn.GELU(), nn.Linear(20, dim))

    def predict(self, emb, act_emb):
        return self.pred_proj(self.predictor(emb, act_emb).flatten(0, 1)).unflatten(0, emb.shape[:2])

    def rollout(self, info, action_sequence, history_size=None):
        found = list(info["emb"].flatten(0, 1).unbind(1))
        actions = self.action_encoder(action_sequence.flatten(0, 1))
        while len(found) <= actions.shape[1]:
            first = max(0, len(found) - (history_size or self.predictor.num_frames))
            window = torch.stack(found[first:], 1), actions[:, first : len(found)]
            found.append(self.predict(*window)[:, -1])
        info["predicted_emb"] = torch.stack(found, 1).unflatten(0, action_sequence.shape[:2])
        return info
