"""Features of a frozen encoder out of a checkpoint, and the pixels that they are compared with."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_fast.data import Source
from jepa_fast.data.augment import views
from jepa_fast.data.loader import Labelled, RawBatch
from jepa_fast.models import VJEPA
from jepa_fast.nn.block import Block
from jepa_fast.training.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.systems import System, make_system

NETWORKS = ("teacher", "encoder")


@dataclass(frozen=True)
class Frozen:
    """An encoder out of a checkpoint, in evaluation mode; `step` of training it is after.

    frame_stride: of every video it was trained on one frame in so many.
    """

    encoder: nn.Module
    system: System
    step: int
    network: str
    has_class_token: bool
    frame_stride: int


def load_frozen(path: Path, *, network: str | None, image_size: int | None, device: torch.device) -> Frozen:
    """The encoder of a checkpoint of `jepa-fast train`, or of the latest one in a folder.

    network: "teacher" or "encoder"; None is the teacher where there is one.
    image_size: that of training, or None; another one raises ValueError.

    Raises FileNotFoundError, CheckpointError or ValueError, naming what is wrong.
    """
    path = latest_checkpoint(path) if path.is_dir() else path
    saved = load_checkpoint(path, required=("step", "plan", "training"))
    plan, parts = saved["plan"], saved["training"]
    names = {field.name for field in fields(TrainConfig)}
    config = TrainConfig(**{key: value for key, value in plan.items() if key in names and value is not None})
    if image_size is not None and image_size != plan["image_size"]:
        raise ValueError(f"image_size: {path} was trained with {plan['image_size']}, got {image_size}")
    system = make_system(config)
    network = network or next((name for name in NETWORKS if name in parts), "")
    if network not in parts:
        raise ValueError(f"network: expected one of those in {path} ({', '.join(parts)}), got {network}")
    encoder = system.model.get_submodule("encoder")
    try:
        encoder.load_state_dict(parts[network])
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its {network} is no {plan['model']}: {error}") from error
    encoder.requires_grad_(False)
    has_class_token = any(
        "cls_token" in name or "class_token" in name for name, _ in encoder.named_parameters()
    )
    return Frozen(
        encoder.to(device).eval(), system, saved["step"], network, has_class_token, config.frame_stride
    )


@dataclass
class Features:
    """Of the samples `indices`: pooled `[n, D]`; tokens float16 `[n, N, dim]` where asked for; pixels `[n, P]`."""

    indices: Tensor
    pooled: Tensor
    tokens: Tensor | None
    pixels: Tensor


@torch.no_grad()
def extract(
    frozen: Frozen,
    source: Source,
    indices: list[int],
    *,
    layers: int = 1,
    batch_size: int = 64,
    workers: int = 0,
    tokens: bool = False,
    advance: Any = None,
) -> Features:
    """Features of the largest central square of each sample.

    Pooled: the mean token of each of the last `layers` blocks, normalised over channels, side by side; the class token
    beside them where the encoder has one. Samples that cannot be read are left out.
    """
    device = next(frozen.encoder.parameters()).device
    size = frozen.system.image_size
    blocks = [part for part in frozen.encoder.modules() if isinstance(part, Block)]
    if not 1 <= layers <= len(blocks):
        raise ValueError(f"layers: expected 1 to {len(blocks)}, got {layers}")
    streams: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda block, inputs, out: streams.append(out[1]))
        for block in blocks[-layers:]
    ]
    loader: DataLoader[RawBatch | None] = DataLoader(
        Labelled(source, indices, batch_size, size), batch_size=None, num_workers=workers
    )
    parts: list[tuple[Tensor, ...]] = []
    try:
        for raw in loader:
            if advance is not None:
                advance()
            if raw is None:
                continue
            moved = raw.to(device)
            pictures = views(moved.pixels, moved.parameters[0], size, recolour=False)
            streams.clear()
            out = frozen.encoder(evaluation_batch(frozen.system, pictures))
            pooled = [pool(stream, frozen.has_class_token) for stream in streams]
            kept = (out.half() if tokens else out[:0]).cpu()
            parts.append(
                (raw.indices, torch.cat(pooled, 1).float().cpu(), kept, pictures[:, 0].flatten(1).cpu())
            )
    finally:
        for hook in hooks:
            hook.remove()
    if not parts:
        raise ValueError(f"data: none of the {len(indices)} samples of {source.root} can be read")
    found, pooled_all, kept_all, pixels = (torch.cat(column) for column in zip(*parts, strict=True))
    return Features(found, pooled_all, kept_all if tokens else None, pixels)


def evaluation_batch(system: System, pictures: Tensor) -> Tensor:
    """`[B, 1, T, 3, size, size]` as the encoder takes it."""
    return pictures[:, 0].transpose(1, 2) if isinstance(system.model, VJEPA) else pictures[:, 0, 0]


def pool(stream: Tensor, has_class_token: bool) -> Tensor:
    tokens = F.layer_norm(stream.float(), stream.shape[-1:])
    if has_class_token:
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    return tokens.mean(1)
