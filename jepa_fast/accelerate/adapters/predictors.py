"""Predictors of facebookresearch/ijepa, jepa, vjepa2 and 2-AC."""

from typing import Any, ClassVar

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from jepa_fast.accelerate.adapter import ANY, Adapter, Sample, Signatures, draw, original
from jepa_fast.accelerate.frame_causal import FrameCausal, of_matrix
from jepa_fast.kernels.token_routing.api import assemble_predictor_tokens

_COMMON = {
    "predictor_embed": nn.Module,
    "predictor_blocks": nn.ModuleList,
    "predictor_norm": nn.Module,
    "predictor_proj": nn.Module,
}


def _as_list(masks: Any) -> list[Tensor]:
    return masks if isinstance(masks, list) else [masks]


def _ids(places: int, *counts: int) -> list[Tensor]:
    drawn = torch.stack([torch.randperm(places) for _ in range(2)])
    return list(drawn[:, : sum(counts)].split(list(counts), dim=1))


def _unequal(module: Any, **wanted: Any) -> list[str]:
    """A reason for each attribute that is not as wanted."""
    return [
        f"attribute {name}: expected {value}, got {getattr(module, name)}"
        for name, value in wanted.items()
        if getattr(module, name) != value
    ]


class Predictor(Adapter):
    kind = "predictor"
    class_names = ("VisionTransformerPredictor",)


class IJEPAPredictor(Predictor):
    """facebookresearch/ijepa: the input of the blocks is written once, without repeats of context and positions."""

    name = "ijepa_predictor"
    title = "assemble_predictor_tokens"
    attributes: ClassVar[dict[str, Any]] = {
        **_COMMON,
        "mask_token": nn.Parameter,
        "predictor_pos_embed": nn.Parameter,
    }
    signatures: ClassVar[Signatures] = (("x", "masks_x", "masks"),)

    def samples(self, module: Any) -> list[Sample]:
        places = module.predictor_pos_embed.shape[1]
        if places < 4:
            return []
        width = module.predictor_embed.in_features
        context, first = _ids(places, places // 2, places // 4)
        _, second = _ids(places, places // 2, places // 4)
        return [Sample((draw(2, context.shape[1], width), [context], [first, second]))]

    @staticmethod
    def forward(self: Any, x: Tensor, masks_x: Any, masks: Any) -> Tensor:
        if masks_x is None or masks is None:
            return original(self)(self, x, masks_x, masks)
        contexts, targets = _as_list(masks_x), _as_list(masks)
        context = self.predictor_embed(x)
        tokens = assemble_predictor_tokens(
            context,
            torch.cat(contexts),
            torch.cat(targets),
            self.predictor_pos_embed[0],
            self.mask_token,
            num_context=len(contexts),
        )
        for block in self.predictor_blocks:
            tokens = block(tokens)
        return self.predictor_proj(self.predictor_norm(tokens[:, x.shape[1] :]))


class JEPAPredictor(Predictor):
    """facebookresearch/jepa: mask tokens are read where they are, not repeated over all places and gathered."""

    name = "jepa_predictor"
    title = "assemble_predictor_tokens"
    attributes: ClassVar[dict[str, Any]] = {
        **_COMMON,
        "mask_tokens": nn.ParameterList,
        "num_mask_tokens": int,
        "predictor_pos_embed": nn.Parameter,
    }
    signatures: ClassVar[Signatures] = (("ctxt", "tgt", "masks_ctxt", "masks_tgt", "mask_index"),)

    def samples(self, module: Any) -> list[Sample]:
        places = module.predictor_pos_embed.shape[1]
        if places < 4:
            return []
        context, target = _ids(places, places // 4, places // 2)
        x = draw(2, context.shape[1], module.predictor_embed.in_features)
        return [Sample((x, x, [context], [target]))]

    @staticmethod
    def forward(
        self: Any, ctxt: Tensor, tgt: Tensor, masks_ctxt: Any, masks_tgt: Any, mask_index: int = 1
    ) -> Tensor:
        if (
            masks_ctxt is None
            or masks_tgt is None
            or len(_as_list(masks_ctxt)) != 1
            or len(_as_list(masks_tgt)) != 1
        ):
            return original(self)(self, ctxt, tgt, masks_ctxt, masks_tgt, mask_index)
        (context_ids,), (target_ids,) = _as_list(masks_ctxt), _as_list(masks_tgt)
        token = self.mask_tokens[mask_index % self.num_mask_tokens]
        position = self.predictor_pos_embed[0]
        x = assemble_predictor_tokens(self.predictor_embed(ctxt), context_ids, target_ids, position, token)
        ids = torch.cat([context_ids, target_ids], dim=1)
        for block in self.predictor_blocks:
            x = block(x, mask=ids)
        return self.predictor_proj(self.predictor_norm(x[:, ctxt.shape[1] :]))


class VJEPA2Predictor(Predictor):
    """facebookresearch/vjepa2 with rotary positions: tokens stay in their order, context first. The published code
    sorts them by position, sample by sample in Python, and sorts them back, which changes nothing."""

    name = "vjepa2_predictor"
    title = "predictor without sort"
    attributes: ClassVar[dict[str, Any]] = {
        **_COMMON,
        "mask_tokens": nn.ParameterList,
        "num_mask_tokens": int,
        "num_patches": int,
        "use_rope": bool,
        "chop_last_n_tokens": int,
        "return_all_tokens": bool,
        "use_activation_checkpointing": bool,
    }
    signatures: ClassVar[Signatures] = (("x", "masks_x", "masks_y", "mask_index", "has_cls"),)

    def more_reasons(self, module: Any) -> list[str]:
        return _unequal(module, use_rope=True, chop_last_n_tokens=0, return_all_tokens=False)

    def samples(self, module: Any) -> list[Sample]:
        places = module.num_patches
        if places < 4:
            return []
        context, target = _ids(places, min(places // 4, 64), min(places // 2, 64))
        x = draw(2, context.shape[1], module.predictor_embed.in_features)
        return [Sample((x, [context], [target]))]

    @staticmethod
    def forward(
        self: Any, x: Tensor, masks_x: Any, masks_y: Any, mask_index: int = 1, has_cls: bool = False
    ) -> Tensor:
        served = not has_cls and masks_x is not None and masks_y is not None
        if not served or len(_as_list(masks_x)) != 1 or len(_as_list(masks_y)) != 1:
            return original(self)(self, x, masks_x, masks_y, mask_index, has_cls)
        (context_ids,), (target_ids,) = _as_list(masks_x), _as_list(masks_y)
        count = x.shape[1]
        x = self.predictor_embed(x)
        token = self.mask_tokens[mask_index % self.num_mask_tokens]
        x = torch.cat([x, token.expand(*target_ids.shape, -1)], dim=1)
        ids = torch.cat([context_ids, target_ids], dim=1)
        for block in self.predictor_blocks:
            if self.use_activation_checkpointing:
                x = torch.utils.checkpoint.checkpoint(block, x, ids, None, use_reentrant=False)
            else:
                x = block(x, mask=ids, attn_mask=None)
        return self.predictor_proj(self.predictor_norm(x[:, count:]))


class VJEPA21Predictor(Predictor):
    """V-JEPA 2.1 with rotary positions: as that of V-JEPA 2, with a vector for the modality, and a second head for the
    context tokens."""

    name = "vjepa21_predictor"
    title = "predictor without sort"
    attributes: ClassVar[dict[str, Any]] = {
        **VJEPA2Predictor.attributes,
        "modality_embedding": bool,
    }
    optional = ("video_mod_embed", "img_mod_embed", "predictor_proj_context")
    signatures: ClassVar[Signatures] = (("x", "masks_x", "masks_y", "mod", "mask_index"),)

    def more_reasons(self, module: Any) -> list[str]:
        return _unequal(module, use_rope=True, chop_last_n_tokens=0)

    def samples(self, module: Any) -> list[Sample]:
        places = module.num_patches
        if places < 4:
            return []
        context, target = _ids(places, min(places // 4, 64), min(places // 2, 64))
        width = next(
            layer for layer in module.predictor_embed.modules() if isinstance(layer, nn.Linear)
        ).in_features
        return [
            Sample((draw(2, context.shape[1], width), [context], [target], mod)) for mod in ("video", "image")
        ]

    @staticmethod
    def forward(
        self: Any, x: Tensor, masks_x: Any, masks_y: Any, mod: str = "video", mask_index: int = 1
    ) -> Any:
        if masks_x is None or masks_y is None or len(_as_list(masks_x)) != 1 or len(_as_list(masks_y)) != 1:
            return original(self)(self, x, masks_x, masks_y, mod, mask_index)
        (context_ids,), (target_ids,) = _as_list(masks_x), _as_list(masks_y)
        count = x.shape[1]
        x = self.predictor_embed(x)
        token = self.mask_tokens[mask_index % self.num_mask_tokens]
        x = torch.cat([x, token.expand(*target_ids.shape, -1)], dim=1)
        if self.modality_embedding:
            x = x + (self.img_mod_embed if mod == "image" else self.video_mod_embed)
        ids = torch.cat([context_ids, target_ids], dim=1)
        for block in self.predictor_blocks:
            if self.use_activation_checkpointing:
                x, _ = torch.utils.checkpoint.checkpoint(block, x, ids, use_reentrant=False)
            else:
                x, _ = block(x, mask=ids)
        if not self.return_all_tokens:
            return self.predictor_proj(self.predictor_norm(x[:, count:])), None
        x = self.predictor_norm(x)
        return self.predictor_proj(x[:, count:]), self.predictor_proj_context(x[:, :count])


class ActionPredictor(Adapter):
    """`VisionTransformerPredictorAC`: its code runs as it is, on a rule where the matrix of its mask was. The matrix,
    up to 4.36 GB, is freed; `restore_` makes it again. `patch_functions_` keeps it from being made at all."""

    name = "vjepa2_ac_predictor"
    kind = "predictor"
    title = "itself, without the matrix of its mask"
    class_names = ("VisionTransformerPredictorAC",)
    attributes: ClassVar[dict[str, Any]] = {
        **_COMMON,
        "attn_mask": ANY,
        "grid_height": int,
        "grid_width": int,
        "use_extrinsics": bool,
        "action_encoder": nn.Module,
        "state_encoder": nn.Module,
    }
    optional = ("extrinsics_encoder",)
    signatures: ClassVar[Signatures] = (("x", "actions", "states", "extrinsics"),)

    def more_reasons(self, module: Any) -> list[str]:
        if of_matrix(module.attn_mask, _step(module)) is None:
            return [
                f"attribute attn_mask: expected a mask that is causal over steps of {_step(module)} tokens"
            ]
        return []

    def on_patch(self, module: Any) -> None:
        found = of_matrix(module.attn_mask, _step(module))
        if found is not None:
            module.attn_mask = found

    def on_restore(self, module: Any) -> None:
        if isinstance(module.attn_mask, FrameCausal):
            module.attn_mask = module.attn_mask.dense()

    @staticmethod
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return original(self)(self, *args, **kwargs)


def _step(module: Any) -> int:
    return (3 if module.use_extrinsics else 2) + module.grid_height * module.grid_width
