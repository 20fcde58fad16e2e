"""jepa_fast: a custom-kernel performance engine for joint-embedding predictive architectures.

Public names are imported on first use, so that `import jepa_fast` and the command line start at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa_fast import accelerate as accelerate
    from jepa_fast import models as models
    from jepa_fast.accelerate import OptimizeConfig as OptimizeConfig
    from jepa_fast.accelerate import Report as Report
    from jepa_fast.accelerate import optimize_ as optimize_
    from jepa_fast.accelerate import restore_ as restore_
    from jepa_fast.accelerate import verify as verify
    from jepa_fast.kernels.adamw_ema.api import AdamWEMA as AdamWEMA
    from jepa_fast.kernels.adamw_ema.api import adamw_ema_step_ as adamw_ema_step_
    from jepa_fast.kernels.attention.api import masked_attention as masked_attention
    from jepa_fast.kernels.attention.front_doors import flash_attn_varlen_func as flash_attn_varlen_func
    from jepa_fast.kernels.attention.front_doors import (
        scaled_dot_product_attention as scaled_dot_product_attention,
    )
    from jepa_fast.kernels.attention.masks import BlockCausal as BlockCausal
    from jepa_fast.kernels.attention.masks import BlockSparse as BlockSparse
    from jepa_fast.kernels.attention.masks import Varlen as Varlen
    from jepa_fast.kernels.covariance.api import barlow_twins_loss as barlow_twins_loss
    from jepa_fast.kernels.covariance.api import covariance_loss as covariance_loss
    from jepa_fast.kernels.covariance.api import variance_loss as variance_loss
    from jepa_fast.kernels.covariance.api import vicreg_loss as vicreg_loss
    from jepa_fast.kernels.ema.api import ema_update_ as ema_update_
    from jepa_fast.kernels.gelu_mlp.api import gelu_mlp as gelu_mlp
    from jepa_fast.kernels.latent_loss.api import latent_prediction_loss as latent_prediction_loss
    from jepa_fast.kernels.layer_norm.api import add_layer_norm as add_layer_norm
    from jepa_fast.kernels.layer_norm.api import layer_norm as layer_norm
    from jepa_fast.kernels.patch_embed.api import masked_patch_embed as masked_patch_embed
    from jepa_fast.kernels.patch_embed.api import patchify as patchify
    from jepa_fast.kernels.rope.api import rope_3d as rope_3d
    from jepa_fast.kernels.rope.positions import Rope3D as Rope3D
    from jepa_fast.kernels.runtime.rooms import explain as explain
    from jepa_fast.kernels.sigreg.api import sigreg_loss as sigreg_loss
    from jepa_fast.kernels.token_routing.api import assemble_predictor_tokens as assemble_predictor_tokens
    from jepa_fast.kernels.token_routing.api import gather_tokens as gather_tokens
    from jepa_fast.kernels.token_routing.api import pack_tokens as pack_tokens

_HOMES = {
    "AdamWEMA": "jepa_fast.kernels.adamw_ema.api",
    "BlockCausal": "jepa_fast.kernels.attention.masks",
    "BlockSparse": "jepa_fast.kernels.attention.masks",
    "OptimizeConfig": "jepa_fast.accelerate",
    "Report": "jepa_fast.accelerate",
    "Rope3D": "jepa_fast.kernels.rope.positions",
    "Varlen": "jepa_fast.kernels.attention.masks",
    "adamw_ema_step_": "jepa_fast.kernels.adamw_ema.api",
    "add_layer_norm": "jepa_fast.kernels.layer_norm.api",
    "assemble_predictor_tokens": "jepa_fast.kernels.token_routing.api",
    "barlow_twins_loss": "jepa_fast.kernels.covariance.api",
    "covariance_loss": "jepa_fast.kernels.covariance.api",
    "ema_update_": "jepa_fast.kernels.ema.api",
    "explain": "jepa_fast.kernels.runtime.rooms",
    "flash_attn_varlen_func": "jepa_fast.kernels.attention.front_doors",
    "gather_tokens": "jepa_fast.kernels.token_routing.api",
    "gelu_mlp": "jepa_fast.kernels.gelu_mlp.api",
    "latent_prediction_loss": "jepa_fast.kernels.latent_loss.api",
    "layer_norm": "jepa_fast.kernels.layer_norm.api",
    "masked_attention": "jepa_fast.kernels.attention.api",
    "masked_patch_embed": "jepa_fast.kernels.patch_embed.api",
    "optimize_": "jepa_fast.accelerate",
    "pack_tokens": "jepa_fast.kernels.token_routing.api",
    "patchify": "jepa_fast.kernels.patch_embed.api",
    "rope_3d": "jepa_fast.kernels.rope.api",
    "restore_": "jepa_fast.accelerate",
    "scaled_dot_product_attention": "jepa_fast.kernels.attention.front_doors",
    "sigreg_loss": "jepa_fast.kernels.sigreg.api",
    "variance_loss": "jepa_fast.kernels.covariance.api",
    "verify": "jepa_fast.accelerate",
    "vicreg_loss": "jepa_fast.kernels.covariance.api",
}
_SUBPACKAGES = ("accelerate", "models")

__all__ = [
    "AdamWEMA",
    "BlockCausal",
    "BlockSparse",
    "OptimizeConfig",
    "Report",
    "Rope3D",
    "Varlen",
    "accelerate",
    "adamw_ema_step_",
    "add_layer_norm",
    "assemble_predictor_tokens",
    "barlow_twins_loss",
    "covariance_loss",
    "ema_update_",
    "explain",
    "flash_attn_varlen_func",
    "gather_tokens",
    "gelu_mlp",
    "latent_prediction_loss",
    "layer_norm",
    "masked_attention",
    "masked_patch_embed",
    "models",
    "optimize_",
    "pack_tokens",
    "patchify",
    "restore_",
    "rope_3d",
    "scaled_dot_product_attention",
    "sigreg_loss",
    "variance_loss",
    "verify",
    "vicreg_loss",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
