"""How many floating-point operations a training step takes, and how many a device could do."""

import math
from typing import Any, cast

import torch
from torch import nn

from jepa_fast.nn.attention import Attention
from jepa_fast.nn.vision_transformer import VisionTransformer

# Dense bfloat16 matrix products of tensor cores, in FLOP/s, from the vendors' data sheets; by a part of the name.
_PEAKS = (
    ("GB200", 2500e12), ("B200", 2250e12), ("H200", 989e12), ("GH200", 989e12), ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12), ("H100", 989e12), ("A100", 312e12), ("L40S", 362e12), ("L40", 181e12), ("L4", 121e12),
    ("A10G", 70e12), ("A10", 125e12), ("A40", 150e12), ("A30", 165e12), ("RTX 5090", 210e12), ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)  # fmt: skip


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Of the device in this precision; None where no data sheet says."""
    if device.type != "cuda" or precision == "float32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS if part in name), None)


def weight_flops(module: nn.Module) -> int:
    """Of the matrix products with the weights of the module's linear layers, for one token, forward."""
    return sum(2 * layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def network_flops(network: nn.Module, sequences: int, tokens: int) -> int:
    """Of a transformer on so many sequences of so many tokens, forward: weights and attention."""
    attention = 0
    for part in network.modules():
        if isinstance(part, Attention):
            attention += 4 * tokens * part.qkv.in_features  # scores and sums of one token
    return sequences * tokens * (weight_flops(network) + attention)


def step_flops(model: nn.Module, has_teacher: bool, batch: Any, masks: Any) -> tuple[int, int]:
    """Tokens that the encoders embed, and operations, of a step: a forward pass, and two more for the backward.

    What the networks multiply with their weights and in attention; nothing for norms, losses and the optimizer.
    """
    encoder = cast("VisionTransformer", model.get_submodule("encoder"))
    predictor = getattr(model, "predictor", None)
    tokens = flops = 0
    for pixels in batch if isinstance(batch, list) else [batch]:
        patch = encoder.embedding(pixels).proj
        axes = len(patch.kernel_size)
        sequences = math.prod(pixels.shape[: -1 - axes])
        lengths = zip(pixels.shape[-axes:], patch.kernel_size, strict=True)
        count = math.prod(max(1, length // kernel) for length, kernel in lengths)
        whole = network_flops(encoder, sequences, count) + 2 * patch.weight.numel() * sequences * count
        if masks is None:
            tokens += sequences * count
            flops += 3 * whole
        elif has_teacher:
            tokens += sequences * count
            flops += whole
    for part in [] if masks is None else [masks] if hasattr(masks, "context") else list(masks):
        context, rows = _size(part.context)
        target, targets = _size(part.target)
        tokens += context
        flops += 3 * network_flops(encoder, rows, context // rows)
        if predictor is not None:
            # Each target row is predicted from each context row of its sample.
            length = context // rows + target // targets
            flops += 3 * network_flops(predictor, max(targets, rows), length)
    return tokens, flops


def _size(index: Any) -> tuple[int, int]:
    """Tokens and rows of indices, cut or ragged."""
    if isinstance(index, torch.Tensor):
        return index.numel(), len(index)
    return len(index.ids), len(index.lengths)
