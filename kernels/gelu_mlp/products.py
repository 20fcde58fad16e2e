"""The matrix products of the layer, by PyTorch."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x @ weight.T + bias` for tensors of one dtype, without autograd.

    `F.linear` on the CPU writes the bias to the whole output and then adds the product; oneDNN adds it to each tile of
    the product in registers, which shows in bfloat16, where the product itself is fast.
    """
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and _onednn_has_bfloat16():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], None)
    return F.linear(x, weight, bias)


@functools.cache
def _onednn_has_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
