"""Transformer blocks of facebookresearch/ijepa, jepa, vjepa2, and timm: residual sum and LayerNorm in one pass."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from jepa_fast.accelerate.adapter import Adapter, Sample, Signatures, draw, norm_reasons, original
from jepa_fast.accelerate.layers import add_norm, norm


class Block(Adapter):
    """What they share: `norm1`, `attn`, `norm2`, `mlp`."""

    kind = "layer_norm"
    title = "add_layer_norm"
    class_names = ("Block",)
    attributes: ClassVar[dict[str, Any]] = {
        "norm1": nn.LayerNorm,
        "attn": nn.Module,
        "norm2": nn.LayerNorm,
        "mlp": nn.Module,
    }
    optional: ClassVar[Sequence[str]] = ("drop_path",)

    def more_reasons(self, module: nn.Module) -> list[str]:
        return norm_reasons(module, "norm1", "norm2")

    def samples(self, module: Any) -> list[Sample]:
        tokens = 2 * getattr(module.attn, "grid_size", 2) ** 2
        return [Sample((draw(2, min(tokens, 512), *module.norm1.normalized_shape),))]


def _finished(self: Any, x: Tensor, update: Tensor) -> Tensor:
    normalized, x = add_norm(update, x, self.norm2)
    return x + _dropped(self, self.mlp(normalized))


def _dropped(self: Any, update: Tensor) -> Tensor:
    drop_path = getattr(self, "drop_path", None)
    return update if drop_path is None else drop_path(update)


class IJEPABlock(Block):
    """facebookresearch/ijepa and jepa. Who asks for attention weights gets them, from the published attention."""

    name = "ijepa_block"
    signatures: ClassVar[Signatures] = (("x", "return_attention"), ("x", "return_attention", "mask"))

    @staticmethod
    def forward(self: Any, x: Tensor, return_attention: bool = False, mask: Any = None) -> Any:
        if return_attention:
            attention = self.attn
            whole = (
                original(attention)
                if hasattr(type(attention), "_jepa_fast_original")
                else type(attention).forward
            )
            return whole(attention, self.norm1(x))[1]
        update = (
            self.attn(norm(self.norm1, x))[0]
            if mask is None
            else self.attn(norm(self.norm1, x), mask=mask)[0]
        )
        return _finished(self, x, _dropped(self, update))


class VJEPA2Block(Block):
    """facebookresearch/vjepa2, with and without rotary positions."""

    name = "vjepa2_block"
    signatures: ClassVar[Signatures] = (("x", "mask", "attn_mask", "T", "H_patches", "W_patches"),)

    @staticmethod
    def forward(self: Any, x: Tensor, mask: Any = None, attn_mask: Any = None, **grid: Any) -> Tensor:
        given = grid if type(self.attn).__name__ == "RoPEAttention" else {}
        update = self.attn(norm(self.norm1, x), mask=mask, attn_mask=attn_mask, **given)
        return _finished(self, x, _dropped(self, update))


class VJEPA21Block(Block):
    """V-JEPA 2.1, which returns attention weights besides, None unless they are asked for."""

    name = "vjepa21_block"
    attributes: ClassVar[dict[str, Any]] = {**Block.attributes, "use_rope": bool}
    signatures: ClassVar[Signatures] = (("x", "mask", "T", "H_patches", "W_patches", "return_attn", "mode"),)

    @staticmethod
    def forward(
        self: Any,
        x: Tensor,
        mask: Any = None,
        T: int | None = None,
        H_patches: int | None = None,
        W_patches: int | None = None,
        return_attn: bool = False,
        mode: str = "video",
    ) -> Any:
        weights = None
        if self.use_rope:
            grid = {"T": T, "H_patches": H_patches, "W_patches": W_patches}
            update, weights = self.attn(norm(self.norm1, x), mask=mask, return_attn=return_attn, **grid)
        else:
            update = self.attn(norm(self.norm1, x))
        x = _finished(self, x, _dropped(self, update))
        return x, weights if return_attn else None


class ActionBlock(Block):
    """`ACBlock` of V-JEPA 2-AC."""

    name = "vjepa2_ac_block"
    class_names = ("ACBlock",)
    signatures: ClassVar[Signatures] = (("x", "mask", "attn_mask", "T", "H", "W", "action_tokens"),)

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(2, 12, *module.norm1.normalized_shape),), {"T": 2, "H": 2, "W": 3})]

    @staticmethod
    def forward(self: Any, x: Tensor, mask: Any = None, attn_mask: Any = None, **grid: Any) -> Tensor:
        given = grid if type(self.attn).__name__ == "ACRoPEAttention" else {}
        update = self.attn(norm(self.norm1, x), mask=mask, attn_mask=attn_mask, **given)
        return _finished(self, x, _dropped(self, update))


class TimmBlock(Block):
    """timm's `Block`, with its layer scales and stochastic depth."""

    name = "timm_block"
    attributes: ClassVar[dict[str, Any]] = {
        **Block.attributes,
        "ls1": nn.Module,
        "drop_path1": nn.Module,
        "ls2": nn.Module,
        "drop_path2": nn.Module,
    }
    optional = ()
    signatures: ClassVar[Signatures] = (("x", "attn_mask", "is_causal"), ("x", "attn_mask"), ("x",))

    @staticmethod
    def forward(self: Any, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        options = {}
        if attn_mask is not None:
            options["attn_mask"] = attn_mask
        if is_causal:
            options["is_causal"] = is_causal
        update = self.drop_path1(self.ls1(self.attn(norm(self.norm1, x), **options)))
        normalized, x = add_norm(update, x, self.norm2)
        return x + self.drop_path2(self.ls2(self.mlp(normalized)))
