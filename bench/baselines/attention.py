"""Attention and rotary positions as published training code writes them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BASE = 10000.0
AXES = 3


def vjepa2_positions(ids: Tensor, rows: int, columns: int) -> list[Tensor]:
    """Frame, row and column of token ids, in frame-major order."""
    return [ids // (rows * columns), ids % (rows * columns) // columns, ids % columns]


def vjepa2_rotary(x: Tensor, positions: Sequence[Tensor], *, interleaved: bool = False) -> Tensor:
    """V-JEPA 2's rotation of queries or keys `[B, H, N, D]`: axis by axis, then put together.

    positions: for each axis `[N]`, or, as in passes over masked clips, `[B, H, N]`: there the published code repeats
    the token ids over the heads before it takes positions from them. interleaved: V-JEPA 2.1's corrected form.
    """
    width = 2 * (x.shape[-1] // AXES // 2)
    parts = [
        _rotate_axis(x[..., axis * width : (axis + 1) * width], position, interleaved)
        for axis, position in enumerate(positions)
    ]
    if AXES * width < x.shape[-1]:
        parts.append(x[..., AXES * width :])
    return torch.cat(parts, dim=-1)


def _rotate_axis(x: Tensor, position: Tensor, interleaved: bool) -> Tensor:
    """One axis; frequencies, angles, sines and cosines are formed anew in every call, in the dtype of x."""
    half = x.shape[-1] // 2
    exponent = torch.arange(half, dtype=x.dtype, device=x.device) / half
    angle = torch.einsum("..., f -> ... f", position, 1.0 / BASE**exponent)
    sine, cosine = angle.sin(), angle.cos()
    if interleaved:
        sine, cosine = sine.repeat_interleave(2, -1), cosine.repeat_interleave(2, -1)
    else:
        tiles = (1,) * (angle.ndim - 1) + (2,)
        sine, cosine = sine.repeat(tiles), cosine.repeat(tiles)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return x * cosine + turned * sine


def vjepa2_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    interleaved: bool = False,
) -> Tensor:
    """V-JEPA 2's attention without its linear layers: the rotations, then SDPA; all `[B, H, N, D]`."""
    query, key = (vjepa2_rotary(x, positions, interleaved=interleaved) for x in (query, key))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def padding_mask(lengths: Sequence[int], length: int, device: torch.device) -> Tensor:
    """bool `[S, 1, 1, length]`: what a batch of sequences padded to `length` may see."""
    tokens = torch.arange(length, device=device)
    return (tokens < torch.tensor(lengths, device=device)[:, None])[:, None, None]


def block_causal_mask(steps: int, tokens_per_step: int, device: torch.device) -> Tensor:
    """bool `[N, N]`, the dense mask of V-JEPA 2-AC."""
    step = torch.arange(steps * tokens_per_step, device=device) // tokens_per_step
    return step[:, None] >= step[None, :]


def softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """I-JEPA's attention: scores, softmax and weighted sum as three ops; all `[B, H, N, D]`."""
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ value
