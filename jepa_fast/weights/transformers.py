"""The names of transformers for the encoder of I-JEPA (IJepa) and for V-JEPA 2 (VJEPA2), and back.

transformers has a linear layer each for query, key and value where the published layout has one for all three. Of IJepa
there are two generations of names; files are written in the first, which both read.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# Ours, and what stands for it behind the number of a layer.
_VJEPA2_LAYER = {
    "norm1": "norm1",
    "attn.proj": "attention.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_VJEPA2_PARTS = ("attention.query", "attention.key", "attention.value")
_IJEPA_LAYER = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_IJEPA_PARTS = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_IJEPA_LAYER_5 = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_IJEPA_PARTS_5 = ("attention.q_proj", "attention.k_proj", "attention.v_proj")


class Names:
    """One part of a model: `fixed` names, and layers `ours.<i>.` = `theirs.<i>.`."""

    def __init__(
        self, fixed: dict[str, str], ours: str, theirs: str, layer: dict[str, str], parts: tuple[str, ...]
    ) -> None:
        self.fixed, self.ours, self.theirs, self.layer, self.parts = fixed, ours, theirs, layer, parts

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keys that have no name there keep ours."""
        out: dict[str, Tensor] = {}
        for key, value in state.items():
            found = re.fullmatch(rf"{self.ours}\.(\d+)\.(.+)\.(weight|bias)", key)
            number, name, kind = found.groups() if found else ("", "", "")
            if name == "attn.qkv":
                for part, rows in zip(self.parts, value.chunk(3), strict=True):
                    out[f"{self.theirs}.{number}.{part}.{kind}"] = rows
            elif name not in self.layer:
                out[self.fixed.get(key, key)] = value
            else:
                out[f"{self.theirs}.{number}.{self.layer[name]}.{kind}"] = value
        return out

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse; all three of query, key and value have to be there."""
        fixed = {theirs: ours for ours, theirs in self.fixed.items()}
        layer = {theirs: ours for ours, theirs in self.layer.items()}
        out: dict[str, Tensor] = {}
        thirds: dict[str, dict[int, Tensor]] = {}
        for key, value in state.items():
            found = re.fullmatch(rf"{self.theirs}\.(\d+)\.(.+)\.(weight|bias)", key)
            if key in fixed:
                out[fixed[key]] = value
            elif found and found[2] in layer:
                out[f"{self.ours}.{found[1]}.{layer[found[2]]}.{found[3]}"] = value
            elif found and found[2] in self.parts:
                whole = f"{self.ours}.{found[1]}.attn.qkv.{found[3]}"
                thirds.setdefault(whole, {})[self.parts.index(found[2])] = value
            else:
                out[key] = value
        return out | {whole: torch.cat([rows[place] for place in range(3)]) for whole, rows in thirds.items()}


def _both(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {f"{a}.{kind}": f"{b}.{kind}" for a, b in names for kind in ("weight", "bias")}


VJEPA2_ENCODER = Names(
    _both([("patch_embed.proj", "embeddings.patch_embeddings.proj"), ("norm", "layernorm")]),
    "blocks",
    "layer",
    _VJEPA2_LAYER,
    _VJEPA2_PARTS,
)
VJEPA2_PREDICTOR = Names(
    _both(
        [
            ("predictor_embed", "embeddings.predictor_embeddings"),
            ("predictor_norm", "layernorm"),
            ("predictor_proj", "proj"),
        ]
    )
    | {"mask_tokens": "embeddings.mask_tokens"},
    "predictor_blocks",
    "layer",
    _VJEPA2_LAYER,
    _VJEPA2_PARTS,
)
_IJEPA_FIXED = _both(
    [("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("norm", "layernorm")]
) | {"pos_embed": "embeddings.position_embeddings"}
IJEPA = Names(_IJEPA_FIXED, "blocks", "encoder.layer", _IJEPA_LAYER, _IJEPA_PARTS)
IJEPA_5 = Names(_IJEPA_FIXED, "blocks", "layers", _IJEPA_LAYER_5, _IJEPA_PARTS_5)


def stack_mask_tokens(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`mask_tokens.<i>` [1, 1, D] as one tensor [tokens, 1, 1, D], where there are such."""
    tokens = {key: value for key, value in state.items() if key.startswith("mask_tokens.")}
    if not tokens:
        return dict(state)
    ordered = sorted(tokens, key=lambda key: int(key.rsplit(".", 1)[1]))
    rest = {key: value for key, value in state.items() if key not in tokens}
    return rest | {"mask_tokens": torch.stack([tokens[key] for key in ordered])}


def unstack_mask_tokens(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `stack_mask_tokens`."""
    out = dict(state)
    stacked = out.pop("mask_tokens", None)
    if stacked is not None:
        out |= {f"mask_tokens.{number}": token.clone() for number, token in enumerate(stacked)}
    return out
