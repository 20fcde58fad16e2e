"""Rollouts of stable-worldmodel's LeWM, which read the last step of every prediction.

The published rollout predicts all steps of a window and takes the last. Here the last block computes its queries, MLP
and projection for that step alone, and while the window still grows, earlier steps are read from the call before: the
attention is causal and positions count from the start of the window, so they have not changed.
"""

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import probe
from .adapter import untouched

_SEED = 20250811
_TOLERANCE = 1e-8
"""Of the comparison with the published prediction in float64."""

_proven: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def lewm_rollout(published: Callable[..., Any]) -> Callable[..., Any]:
    def rollout(self: Any, info: Any, action_sequence: Tensor, history_size: int | None = None) -> Any:
        if "predict" in self.__dict__ or not _served(self):
            return published(self, info, action_sequence, history_size)
        self.__dict__["predict"] = LastStep(self)
        try:
            return published(self, info, action_sequence, history_size)
        finally:
            del self.__dict__["predict"]

    return rollout


class LastStep:
    """`LeWM.predict` of windows that follow each other. Of its result `[B, T, D]` only the last step is computed; the
    others are not a number, so that nobody reads them unnoticed."""

    def __init__(self, model: Any) -> None:
        self.predictor, self.projection = model.predictor, model.pred_proj
        self.window: tuple[Tensor, Tensor] | None = None
        self.past: list[tuple[Tensor, Tensor]] = []

    def __call__(self, emb: Tensor, act_emb: Tensor) -> Tensor:
        steps = emb.shape[1]
        if not self.continues(emb, act_emb):
            self.past = []
        self.window = emb, act_emb
        seen = self.past[0][0].shape[2] if self.past else 0
        predictor, transformer = self.predictor, self.predictor.transformer
        x = emb[:, seen:] + predictor.pos_embedding[:, seen:steps]
        x, condition = transformer.input_proj(x), transformer.cond_proj(act_emb[:, seen:])
        past, self.past = self.past, []
        for i, block in enumerate(transformer.layers):
            before = past[i] if past else None
            x = self.block(block, x, condition, before, last=block is transformer.layers[-1])
        x = self.projection(transformer.output_proj(transformer.norm(x[:, -1])))
        return F.pad(x[:, None], (0, 0, steps - 1, 0), value=float("nan"))

    def continues(self, emb: Tensor, act_emb: Tensor) -> bool:
        """Whether this window is the one before and one step more. On a GPU the host would wait for the answer."""
        return (
            self.window is not None
            and not emb.is_cuda
            and emb.shape[1] == self.window[0].shape[1] + 1
            and torch.equal(emb[:, :-1], self.window[0])
            and torch.equal(act_emb[:, :-1], self.window[1])
        )

    def block(
        self, block: Any, x: Tensor, condition: Tensor, before: tuple[Tensor, Tensor] | None, last: bool
    ) -> Tensor:
        """Steps x and their condition, `[B, N, D]`, behind the keys and values of earlier ones; with `last` the last
        step of the result alone."""
        of_attention, of_mlp = block.adaLN_modulation(condition).unflatten(-1, (2, 3, -1)).unbind(-3)
        shift, scale, gate = of_attention.unbind(-2)
        attention = block.attn
        normalized = attention.norm(block.norm1(x) * (1 + scale) + shift)
        weight = attention.to_qkv.weight
        inner = len(weight) // 3
        heads = (attention.heads, -1)
        if last:
            x, gate, of_mlp = x[:, -1:], gate[:, -1:], of_mlp[:, -1:]
        query = F.linear(normalized[:, -x.shape[1] :], weight[:inner]).unflatten(-1, heads).transpose(1, 2)
        key, value = (
            F.linear(normalized, weight[inner:]).unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4).unbind()
        )
        if before is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(before, (key, value), strict=True))
        self.past.append((key, value))
        out = F.scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1)
        x = x + gate * attention.to_out(out.transpose(1, 2).flatten(2))
        shift, scale, gate = of_mlp.unbind(-2)
        return x + gate * block.mlp(block.norm2(x) * (1 + scale) + shift)


def _served(model: Any) -> bool:
    """Whether nothing in the model trains or is hooked into, and the last steps are those of its own `predict`."""
    parts = [
        part for name in ("predictor", "pred_proj") for part in getattr(model, name, nn.Identity()).modules()
    ]
    if any(part.training for part in parts) or not untouched(*parts) or torch.compiler.is_compiling():
        return False
    if model not in _proven:
        _proven[model] = _agrees(model)
    return _proven[model]


@torch.no_grad()
def _agrees(model: Any) -> bool:
    """In float64, on random weights: those of a new predictor close all its gates."""
    try:
        copies = SimpleNamespace(
            predictor=probe.random_copy(model.predictor), pred_proj=probe.random_copy(model.pred_proj)
        )
        with torch.random.fork_rng([]), torch.autocast("cpu", enabled=False):
            torch.manual_seed(_SEED)
            steps, width = copies.predictor.pos_embedding.shape[1:]
            emb, act_emb = torch.randn(2, 3, steps, width, dtype=torch.float64)
            ours = LastStep(copies)
            for end in range(1, steps + 1):
                window = emb[:, :end], act_emb[:, :end]
                expected = type(model).predict(copies, *window)[:, -1]
                if not torch.allclose(ours(*window)[:, -1], expected, rtol=_TOLERANCE, atol=_TOLERANCE):
                    return False
    except Exception:  # another predictor, or one that has changed upstream
        return False
    return True
