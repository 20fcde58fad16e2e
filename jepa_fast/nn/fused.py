"""Which fused ops the layers of the model stack run on."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Fused:
    """The fused pieces of a training step, all on; each can be left out, to see what it gives."""

    adamw_ema: bool = True
    """AdamW, the teacher's moving average and the low-precision copies of both networks in one pass."""
    attention: bool = True
    """Our attention, with rotary positions and masks inside and sequences of different lengths in one call."""
    gelu_mlp: bool = True
    """GELU and its backward, with the gradient of the hidden layer's bias in the same pass."""
    layer_norm: bool = True
    """The residual sum together with the LayerNorm that reads it, in and out in the dtypes that are there."""
    linear: bool = True
    """The products of linear layers by our kernel, on CPUs where it is the quicker one."""
    patch_embed: bool = True
    """Only the kept patches; teacher and student embed from one pass over the pixels."""
    sigreg: bool = True
    """LeJEPA's regulariser without a tensor of projections times knots."""
    token_routing: bool = True
    """The predictor's input, written once: no sort, no repeats of context and positions."""

    @classmethod
    def none(cls) -> "Fused":
        """Every piece as plain PyTorch operators."""
        return cls(**dict.fromkeys(cls.__dataclass_fields__, False))


class FusedModule(nn.Module):
    """A module with a fused way and a plain way; `set_fused` chooses."""

    fused = Fused()


def set_fused(module: nn.Module, fused: Fused) -> None:
    """Chooses the pieces for `module` and all modules in it."""
    for part in module.modules():
        if isinstance(part, FusedModule):
            part.fused = fused
