"""The room's implementations, and what all its ops ask of dtypes and layouts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.choice import Operation

OPERATION = Operation("token_routing", __package__, triton="triton_token_routing", native="native")


def rows_of(x: Tensor) -> Tensor:
    """With the feature dimension contiguous: all that the kernels ask of a layout."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def promoted(tensors: Sequence[Tensor]) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def accumulated(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
