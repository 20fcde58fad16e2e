"""The table of models in the documentation: `python -m jepa_fast.models.table > docs/models.md`."""

from typing import Any

import torch

from jepa_fast import models

HEAD = """# Models

`jepa_fast.models.create(name)` makes each of these with freshly drawn weights; `jepa_fast.weights.load` reads published
ones, or a checkpoint of `jepa-fast train`, into it, and `jepa_fast.weights.save` writes the published layout or that of
transformers. Every field of a configuration can be changed: `create("vjepa2_vitl_256", frames=32)`. Parameters are
counted with fixed position tables; tokens are those of one image, clip or frame, or of a global crop without its class
token. Samplers of masks: `jepa_fast.masks`; the training step of a model: `jepa_fast.training.steps.make_step`.

| name | encoder, M | predictor, M | width x depth | heads x size | predictor | pixels | frames | tokens |
|---|---|---|---|---|---|---|---|---|
"""


def row(name: str) -> dict[str, Any]:
    """What the table says of a model; no weights are made."""
    with torch.device("meta"):
        model = models.create(name)
    config = model.config
    second = model.projector if isinstance(model, models.LeJEPA) else model.predictor
    return {
        "name": name,
        "encoder": _millions(model.encoder),
        "predictor": _millions(second),
        "blocks": f"{config.dim} x {config.depth}",
        "heads": f"{config.num_heads} x {config.dim // config.num_heads}",
        "second": _second(config),
        "pixels": config.image_size,
        "frames": getattr(config, "frames", 1),
        "tokens": model.encoder.num_patches,
    }


def table() -> str:
    lines = []
    for name in models.names():
        cells = row(name)
        lines.append("| " + " | ".join(f"`{v}`" if k == "name" else str(v) for k, v in cells.items()) + " |")
    return HEAD + "\n".join(lines) + "\n"


def _millions(module: torch.nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 1)


def _second(config: models.Config) -> str:
    if isinstance(config, models.LeJEPAConfig):
        return f"projector to {config.proj_dim}"
    heads = config.num_heads if isinstance(config, models.IJEPAConfig) else config.predictor_heads
    return f"{config.predictor_dim} x {config.predictor_depth}, {heads} x {config.predictor_dim // heads}"


if __name__ == "__main__":
    print(table(), end="")
