"""Attention with one `qkv` projection: facebookresearch/ijepa, jepa, vjepa2, and timm."""

from typing import Any, ClassVar

from torch import Tensor, nn

from jepa_fast.accelerate.adapter import Adapter, Sample, Signatures, draw, dropout_of, original
from jepa_fast.accelerate.frame_causal import mask_of
from jepa_fast.accelerate.layers import attend
from jepa_fast.kernels.attention.masks import BlockCausal
from jepa_fast.kernels.attention.masks.base import Mask


class QKVAttention(Adapter):
    """What they share: `qkv`, heads, `proj`."""

    kind = "attention"
    title = "masked_attention"
    class_names = ("Attention",)
    attributes: ClassVar[dict[str, Any]] = {
        "num_heads": int,
        "scale": float,
        "qkv": nn.Module,
        "attn_drop": nn.Module,
        "proj": nn.Module,
        "proj_drop": nn.Module,
    }

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(2, 7, module.qkv.in_features),))]


def split(self: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value `[B, N, H, D]`, views of one projection."""
    return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)


def sdpa_scale(self: Any) -> float | None:
    """FAIR's modules pass `scale` to their manual attention and forget it for scaled_dot_product_attention."""
    return None if self.use_sdpa else self.scale


def sdpa_dropout(self: Any) -> float:
    """And they pass `proj_drop` for the attention's dropout, in evaluation, too."""
    return float(self.proj_drop_prob) if self.use_sdpa else dropout_of(self.attn_drop)


class IJEPAAttention(QKVAttention):
    """facebookresearch/ijepa: manual softmax; the probabilities that it returns besides are None here, and `Block`
    asks the published code for them where somebody wants them."""

    name = "ijepa_attention"
    signatures: ClassVar[Signatures] = (("x",),)

    def more_reasons(self, module: Any) -> list[str]:
        return [
            f"attribute {name}: expected none" for name in ("fused_attn", "use_sdpa") if hasattr(module, name)
        ]

    @staticmethod
    def forward(self: Any, x: Tensor) -> Any:
        if dropout_of(self.attn_drop) > 0.0:
            return original(self)(self, x)
        query, key, value = split(self, x)
        return self.proj_drop(self.proj(attend(query, key, value, scale=self.scale))), None


class JEPAAttention(QKVAttention):
    """facebookresearch/jepa; the mask argument is not read there."""

    name = "jepa_attention"
    attributes: ClassVar[dict[str, Any]] = {
        **QKVAttention.attributes,
        "use_sdpa": bool,
        "proj_drop_prob": (int, float),
    }
    signatures: ClassVar[Signatures] = (("x", "mask"),)

    @staticmethod
    def forward(self: Any, x: Tensor, mask: Any = None) -> Any:
        if sdpa_dropout(self) > 0.0:
            return original(self)(self, x, mask)
        query, key, value = split(self, x)
        return self.proj_drop(self.proj(attend(query, key, value, scale=sdpa_scale(self)))), None


class VJEPA2PlainAttention(QKVAttention):
    """facebookresearch/vjepa2 without rotary positions."""

    name = "vjepa2_plain_attention"
    attributes: ClassVar[dict[str, Any]] = {**JEPAAttention.attributes, "is_causal": bool}
    signatures: ClassVar[Signatures] = (("x", "mask", "attn_mask"),)

    @staticmethod
    def forward(self: Any, x: Tensor, mask: Any = None, attn_mask: Any = None) -> Tensor:
        form = served_mask(self, attn_mask)
        if form is REFUSED or sdpa_dropout(self) > 0.0:
            return original(self)(self, x, mask, attn_mask)
        query, key, value = split(self, x)
        return self.proj_drop(self.proj(attend(query, key, value, mask=form, scale=sdpa_scale(self))))


class TimmAttention(QKVAttention):
    """timm's `Attention` without normalisation of queries and keys."""

    name = "timm_attention"
    attributes: ClassVar[dict[str, Any]] = {**QKVAttention.attributes, "fused_attn": bool}
    signatures: ClassVar[Signatures] = (("x", "attn_mask", "is_causal"), ("x", "attn_mask"), ("x",))

    def more_reasons(self, module: Any) -> list[str]:
        return ["attribute gate: expected None"] if getattr(module, "gate", None) is not None else []

    @staticmethod
    def forward(self: Any, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or dropout_of(self.attn_drop) > 0.0:
            return original(self)(self, x, attn_mask=attn_mask, is_causal=is_causal)
        query, key, value = split(self, x)
        mask = BlockCausal(1) if is_causal else None
        return self.proj_drop(self.proj(attend(query, key, value, mask=mask, scale=self.scale)))


REFUSED = object()


def served_mask(self: Any, attn_mask: Any) -> Any:
    """The mask of FAIR's attention as one of ours, or `REFUSED`."""
    causal: Mask | None = BlockCausal(1) if self.is_causal else None
    if attn_mask is None:
        # The published code without scaled_dot_product_attention forgets that it is causal.
        return causal if self.use_sdpa else None
    found = mask_of(attn_mask)
    return REFUSED if found is None or causal is not None else found
