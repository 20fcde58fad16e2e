"""All adapters, in the order in which they are tried."""

from .adapter import Adapter
from .adapters import blocks, mlp, predictors, qkv, sigreg, transformers_vit, vicreg, vjepa2_hf, vjepa2_rope

ADAPTERS: tuple[Adapter, ...] = (
    vjepa2_hf.VJEPA2Attention(),
    vjepa2_hf.VJEPA2Block(),
    vjepa2_hf.VJEPA2Predictor(),
    vjepa2_hf.VJEPA2ModelWarning(),
    transformers_vit.ViTAttention(),
    transformers_vit.ViTSelfAttention(),
    transformers_vit.DINOv3Attention(),
    transformers_vit.ViTLayer(),
    transformers_vit.DINOLayer(),
    mlp.GELUMLP(),
    qkv.IJEPAAttention(),
    qkv.JEPAAttention(),
    qkv.VJEPA2PlainAttention(),
    qkv.TimmAttention(),
    vjepa2_rope.RopeAttention(),
    vjepa2_rope.RopeAttention21(),
    vjepa2_rope.ActionAttention(),
    blocks.IJEPABlock(),
    blocks.VJEPA2Block(),
    blocks.VJEPA21Block(),
    blocks.ActionBlock(),
    blocks.TimmBlock(),
    predictors.IJEPAPredictor(),
    predictors.JEPAPredictor(),
    predictors.VJEPA2Predictor(),
    predictors.VJEPA21Predictor(),
    predictors.ActionPredictor(),
    *sigreg.ADAPTERS,
    *vicreg.ADAPTERS,
)


def adapter_by_name(name: str) -> Adapter:
    for adapter in ADAPTERS:
        if adapter.name == name:
            return adapter
    raise LookupError(f"jepa_fast has no adapter {name!r}; the module was saved by another version")
