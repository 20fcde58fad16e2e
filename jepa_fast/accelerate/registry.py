"""All adapters, in the order in which they are tried."""

from .adapter import Adapter
from .adapters import mlp, vjepa2_hf

ADAPTERS: tuple[Adapter, ...] = (
    vjepa2_hf.VJEPA2Attention(),
    vjepa2_hf.VJEPA2Block(),
    vjepa2_hf.VJEPA2Predictor(),
    vjepa2_hf.VJEPA2ModelWarning(),
    mlp.GELUMLP(),
)


def adapter_by_name(name: str) -> Adapter:
    for adapter in ADAPTERS:
        if adapter.name == name:
            return adapter
    raise LookupError(f"jepa_fast has no adapter {name!r}; the module was saved by another version")
