"""Vision transformers of transformers: I-JEPA, ViT, DINOv2 with and without registers, DINOv3."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jepa_fast.accelerate.adapter import ANY, Adapter, Sample, Signatures, draw, norm_reasons, original
from jepa_fast.accelerate.layers import add_norm, attend, norm

from .vjepa2_hf import eager_reasons, wants_weights


class ViTAttention(Adapter):
    """`q_proj`, `k_proj`, `v_proj`, attention without mask, `o_proj`."""

    name = "transformers_vit_attention"
    kind = "attention"
    title = "masked_attention"
    class_names = ("IJepaAttention", "ViTAttention", "Dinov2Attention", "Dinov2WithRegistersAttention")
    attributes: ClassVar[dict[str, Any]] = {
        "config": ANY,
        "q_proj": nn.Module,
        "k_proj": nn.Module,
        "v_proj": nn.Module,
        "o_proj": nn.Module,
        "num_attention_heads": int,
        "head_dim": int,
        "attention_dropout": (int, float),
        "scaling": float,
        "is_causal": bool,
    }
    signatures: ClassVar[Signatures] = (("hidden_states", "attention_mask", "kwargs"),)

    def more_reasons(self, module: Any) -> list[str]:
        causal = ["attribute is_causal: expected False"] if module.is_causal else []
        return [*causal, *eager_reasons(module)]

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(2, 7, module.q_proj.in_features),))]

    @staticmethod
    def forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if (
            attention_mask is not None
            or (self.training and self.attention_dropout > 0.0)
            or wants_weights(self)
        ):
            return original(self)(self, hidden_states, attention_mask, **kwargs)
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            layer(hidden_states).view(shape) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(attend(query, key, value, scale=self.scaling)), None


class ViTSelfAttention(Adapter):
    """The layout of transformers 4: `query`, `key`, `value`; the projection is a module of its own."""

    name = "transformers_vit_self_attention"
    kind = "attention"
    title = "masked_attention"
    class_names = (
        "IJepaSelfAttention",
        "ViTSelfAttention",
        "Dinov2SelfAttention",
        "Dinov2WithRegistersSelfAttention",
    )
    attributes: ClassVar[dict[str, Any]] = {
        "config": ANY,
        "query": nn.Module,
        "key": nn.Module,
        "value": nn.Module,
        "num_attention_heads": int,
        "attention_head_size": int,
        "dropout_prob": (int, float),
        "scaling": float,
        "is_causal": bool,
    }
    signatures: ClassVar[Signatures] = (
        ("hidden_states",),
        ("hidden_states", "head_mask"),
        ("hidden_states", "head_mask", "output_attentions"),
    )

    def more_reasons(self, module: Any) -> list[str]:
        causal = ["attribute is_causal: expected False"] if module.is_causal else []
        return [*causal, *eager_reasons(module)]

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(2, 7, module.query.in_features),))]

    @staticmethod
    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        asked = any(argument is not None and argument is not False for argument in (*args, *kwargs.values()))
        if asked or (self.training and self.dropout_prob > 0.0) or wants_weights(self):
            return original(self)(self, hidden_states, *args, **kwargs)
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        query, key, value = (layer(hidden_states).view(shape) for layer in (self.query, self.key, self.value))
        return attend(query, key, value, scale=self.scaling), None


class DINOv3Attention(Adapter):
    """`DINOv3ViTAttention`. Its rotation pairs a channel with the one half a head away, which `Rope3D` does not, so it
    stays in the operators of the published code; the attention behind it is ours."""

    name = "transformers_dinov3_attention"
    kind = "attention"
    title = "masked_attention behind its own rotary positions"
    class_names = ("DINOv3ViTAttention",)
    attributes: ClassVar[dict[str, Any]] = {
        "config": ANY,
        "q_proj": nn.Module,
        "k_proj": nn.Module,
        "v_proj": nn.Module,
        "o_proj": nn.Module,
        "num_heads": int,
        "head_dim": int,
        "dropout": (int, float),
        "scaling": float,
        "is_causal": bool,
    }
    optional = ("embed_dim",)
    signatures: ClassVar[Signatures] = (("hidden_states", "attention_mask", "position_embeddings", "kwargs"),)

    def more_reasons(self, module: Any) -> list[str]:
        causal = ["attribute is_causal: expected False"] if module.is_causal else []
        return [*causal, *eager_reasons(module)]

    def samples(self, module: Any) -> list[Sample]:
        angles = draw(6, module.head_dim)
        x = draw(2, 8, module.q_proj.in_features)
        return [Sample((x,), {"position_embeddings": (angles.cos(), angles.sin())})]

    @staticmethod
    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        if (
            attention_mask is not None
            or position_embeddings is None
            or (self.training and self.dropout > 0.0)
            or wants_weights(self)
        ):
            return original(self)(self, hidden_states, attention_mask, position_embeddings, **kwargs)
        shape = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
        query, key, value = (
            layer(hidden_states).view(shape) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = (table[:, None] for table in position_embeddings)  # [patches, 1, head_dim]
        prefix = query.shape[1] - cos.shape[0]
        query, key = (
            torch.cat([x[:, :prefix], _rotated(x[:, prefix:], cos, sin).to(x.dtype)], dim=1)
            for x in (query, key)
        )
        return self.o_proj(attend(query, key, value, scale=self.scaling)), None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class ViTLayer(Adapter):
    """`layernorm_before`, attention, `layernorm_after`, MLP."""

    name = "transformers_vit_layer"
    kind = "layer_norm"
    title = "add_layer_norm"
    class_names = ("IJepaLayer", "ViTLayer")
    attributes: ClassVar[dict[str, Any]] = {
        "attention": nn.Module,
        "layernorm_before": nn.LayerNorm,
        "layernorm_after": nn.LayerNorm,
        "mlp": nn.Module,
        "dropout": nn.Module,
    }
    signatures: ClassVar[Signatures] = (("hidden_states", "attention_mask", "kwargs"),)

    def more_reasons(self, module: nn.Module) -> list[str]:
        return norm_reasons(module, "layernorm_before", "layernorm_after")

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(2, 5, *module.layernorm_before.normalized_shape),))]

    @staticmethod
    def forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        update, _ = self.attention(norm(self.layernorm_before, hidden_states), attention_mask, **kwargs)
        normalized, x = add_norm(self.dropout(update), hidden_states, self.layernorm_after)
        return self.dropout(self.mlp(normalized)) + x


class DINOLayer(Adapter):
    """`norm1`, attention, layer scale, `norm2`, MLP, layer scale, with stochastic depth."""

    name = "transformers_dino_layer"
    kind = "layer_norm"
    title = "add_layer_norm"
    class_names = ("Dinov2Layer", "Dinov2WithRegistersLayer", "DINOv3ViTLayer")
    attributes: ClassVar[dict[str, Any]] = {
        "norm1": nn.LayerNorm,
        "attention": nn.Module,
        "layer_scale1": nn.Module,
        "drop_path": nn.Module,
        "norm2": nn.LayerNorm,
        "mlp": nn.Module,
        "layer_scale2": nn.Module,
    }
    signatures: ClassVar[Signatures] = (
        ("hidden_states", "attention_mask", "kwargs"),
        ("hidden_states", "attention_mask", "position_embeddings", "kwargs"),
    )

    def more_reasons(self, module: nn.Module) -> list[str]:
        return norm_reasons(module, "norm1", "norm2")

    def samples(self, module: Any) -> list[Sample]:
        x = draw(2, 8, *module.norm1.normalized_shape)
        if not hasattr(module.attention, "num_heads"):
            return [Sample((x,))]
        angles = draw(6, module.attention.head_dim)
        return [Sample((x,), {"position_embeddings": (angles.cos(), angles.sin())})]

    @staticmethod
    def forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        update, _ = self.attention(norm(self.norm1, hidden_states), attention_mask=attention_mask, **kwargs)
        update = self.drop_path(self.layer_scale1(update))
        normalized, x = add_norm(update, hidden_states, self.norm2)
        return self.drop_path(self.layer_scale2(self.mlp(normalized))) + x
