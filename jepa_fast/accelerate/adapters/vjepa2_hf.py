"""V-JEPA 2 of transformers."""

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jepa_fast.accelerate import rotary
from jepa_fast.accelerate.adapter import ANY, Adapter, Sample, Signatures, draw, norm_reasons, original
from jepa_fast.accelerate.layers import add_norm, attend, norm


class VJEPA2Attention(Adapter):
    """`VJEPA2RopeAttention`: query and key are rotated inside the attention instead of in about 90 operators.

    The rotary tables are transformers' own: exponents in the dtype of the query, the rest in float32.
    """

    name = "transformers_vjepa2_attention"
    kind = "attention"
    title = "masked_attention with Rope3D"
    class_names = ("VJEPA2RopeAttention",)
    attributes: ClassVar[dict[str, Any]] = {
        "config": ANY,
        "query": nn.Module,
        "key": nn.Module,
        "value": nn.Module,
        "proj": nn.Module,
        "num_attention_heads": int,
        "attention_head_size": int,
        "all_head_size": int,
        "dropout_prob": (int, float),
        "grid_size": int,
        "d_dim": int,
        "h_dim": int,
        "w_dim": int,
        "scaling": float,
        "is_causal": bool,
    }
    optional = ("dropout",)
    signatures: ClassVar[Signatures] = (
        ("hidden_states", "position_mask"),
        ("hidden_states", "position_mask", "output_attentions"),
        ("hidden_states", "position_mask", "output_attentions", "head_mask"),
    )

    def more_reasons(self, module: Any) -> list[str]:
        segment = 2 * (module.attention_head_size // 3 // 2)
        reasons = [
            f"attribute {name}: expected {segment}, got {getattr(module, name)}"
            for name in ("d_dim", "h_dim", "w_dim")
            if getattr(module, name) != segment
        ]
        if module.is_causal:
            reasons.append("attribute is_causal: expected False")
        return [*reasons, *eager_reasons(module)]

    def samples(self, module: Any) -> list[Sample]:
        grid = module.grid_size**2
        x = draw(2, min(grid + 3, 40), module.query.in_features)
        ids = torch.stack([torch.randperm(2 * grid + 7)[: x.shape[1]] for _ in range(2)])
        return (
            [Sample((x,)), Sample((x,), {"position_mask": ids})]
            if len(ids[0]) == x.shape[1]
            else [Sample((x,))]
        )

    @staticmethod
    def forward(
        self: Any, hidden_states: Tensor, position_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        if (
            (self.training and self.dropout_prob > 0.0)
            or wants_weights(self)
            or any(argument is not None and argument is not False for argument in (*args, *kwargs.values()))
        ):
            return original(self)(self, hidden_states, position_mask, *args, **kwargs)
        batch, tokens = hidden_states.shape[:2]
        shape = (batch, tokens, -1, self.attention_head_size)
        query, key, value = (layer(hidden_states).view(shape) for layer in (self.query, self.key, self.value))
        side = self.grid_size
        if position_mask is None:
            rope = rotary.of_grid(tokens, side, side, hidden_states.device, table="hf")
        else:
            rope = rotary.of_ids(position_mask, side, side, table="hf")
        return self.proj(attend(query, key, value, rope=rope, scale=self.scaling)), None


class VJEPA2Block(Adapter):
    """`VJEPA2Layer`: the residual sum behind the attention together with the LayerNorm that reads it."""

    name = "transformers_vjepa2_layer"
    kind = "layer_norm"
    title = "add_layer_norm"
    class_names = ("VJEPA2Layer",)
    attributes: ClassVar[dict[str, Any]] = {
        "norm1": nn.LayerNorm,
        "attention": nn.Module,
        "drop_path": nn.Module,
        "norm2": nn.LayerNorm,
        "mlp": nn.Module,
    }
    signatures: ClassVar[Signatures] = (("hidden_states", "position_mask", "kwargs"),)

    def more_reasons(self, module: nn.Module) -> list[str]:
        return norm_reasons(module, "norm1", "norm2")

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(2, 5, *module.norm1.normalized_shape),))]

    @staticmethod
    def forward(self: Any, hidden_states: Tensor, position_mask: Tensor | None = None, **kwargs: Any) -> Any:
        update, weights = self.attention(norm(self.norm1, hidden_states), position_mask=position_mask)
        normalized, hidden_states = add_norm(self.drop_path(update), hidden_states, self.norm2)
        return self.drop_path(self.mlp(normalized)) + hidden_states, weights


class VJEPA2Predictor(Adapter):
    """`VJEPA2Predictor`: tokens stay where they are, context first. The published code sorts them by position and sorts
    them back, which changes nothing, since attention is full and rotary positions come from the ids."""

    name = "transformers_vjepa2_predictor"
    kind = "predictor"
    title = "predictor without sort"
    class_names = ("VJEPA2Predictor",)
    attributes: ClassVar[dict[str, Any]] = {
        "config": ANY,
        "embeddings": nn.Module,
        "layer": nn.ModuleList,
        "layernorm": nn.Module,
        "proj": nn.Module,
        "sort_tokens": ANY,
        "unsort_tokens": ANY,
    }
    signatures: ClassVar[Signatures] = (("encoder_hidden_states", "context_mask", "target_mask", "kwargs"),)

    def more_reasons(self, module: Any) -> list[str]:
        parts = module.embeddings
        return [
            f"expected attribute embeddings.{name}"
            for name in ("predictor_embeddings", "mask_tokens", "num_mask_tokens")
            if not hasattr(parts, name)
        ]

    def samples(self, module: Any) -> list[Sample]:
        tokens = 12
        ids = torch.stack([torch.randperm(tokens) for _ in range(2)])
        x = draw(2, tokens, module.embeddings.predictor_embeddings.in_features)
        return [Sample((x, [ids[:, :5]], [ids[:, 5:9]]))]

    @staticmethod
    def forward(
        self: Any,
        encoder_hidden_states: Tensor,
        context_mask: list[Tensor],
        target_mask: list[Tensor],
        **kwargs: Any,
    ) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        # Several masks multiply the batch in a way of its own upstream.
        if len(context_mask) != 1 or len(target_mask) != 1:
            return original(self)(self, encoder_hidden_states, context_mask, target_mask, **kwargs)
        device, parts = encoder_hidden_states.device, self.embeddings
        context_ids, target_ids = context_mask[0].to(device), target_mask[0].to(device)
        batch = torch.arange(len(context_ids), device=device)[:, None]
        context = parts.predictor_embeddings(encoder_hidden_states[batch, context_ids])
        token = parts.mask_tokens[1 % parts.num_mask_tokens]  # [1, 1, D]; upstream's default mask_index
        x = torch.cat([context, token.expand(*target_ids.shape, -1)], dim=1)
        ids = torch.cat([context_ids, target_ids], dim=1)
        for layer in self.layer:
            x = layer(x, ids, **kwargs)[0]
        x = self.layernorm(x[:, context.shape[1] :])
        return BaseModelOutput(last_hidden_state=self.proj(x))


class VJEPA2ModelWarning(Adapter):
    """`VJEPA2Model`: called without masks it runs the predictor on context = target = all tokens, twice as many as the
    encoder has, and few who call it so want its output."""

    name = "transformers_vjepa2_model"
    kind = "warning"
    title = "itself, and warns if the predictor runs without masks"
    class_names = ("VJEPA2Model",)
    attributes: ClassVar[dict[str, Any]] = {"encoder": nn.Module, "predictor": nn.Module}

    def more_reasons(self, module: nn.Module) -> list[str]:
        import inspect

        names = list(inspect.signature(type(module).forward).parameters)[1:5]
        expected = ["pixel_values_videos", "context_mask", "target_mask", "skip_predictor"]
        return [] if names == expected else [f"expected forward({', '.join(expected)}, ...)"]

    @staticmethod
    def forward(
        self: Any,
        pixel_values_videos: Tensor,
        context_mask: Any = None,
        target_mask: Any = None,
        skip_predictor: bool = False,
        **kwargs: Any,
    ) -> Any:
        if context_mask is None and target_mask is None and not skip_predictor:
            _warn()
        return original(self)(self, pixel_values_videos, context_mask, target_mask, skip_predictor, **kwargs)


@torch.compiler.disable
def _warn() -> None:
    warnings.warn(
        "VJEPA2Model was called without masks: its predictor runs on twice the encoder's tokens, context and target "
        "being all of them. Pass skip_predictor=True if you need the encoder's output only.",
        UserWarning,
        stacklevel=3,
    )


def eager_reasons(module: Any) -> list[str]:
    if wants_weights(module):
        return [
            'the config asks for "eager" attention, which returns attention weights; '
            'set_attn_implementation("sdpa") or "jepa_fast" if nobody reads them'
        ]
    return []


def wants_weights(module: Any) -> bool:
    return getattr(module.config, "_attn_implementation", None) == "eager"
