"""What is added to the residual stream, apart from the stream itself."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Optional3 = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Branch:
    """drop_path[b] * layer_scale * (x + bias), each factor and term optional.

    x: `[B, N, D]`; None in a backward pass that has no use for it: only the gradient of layer_scale reads it.
    dtype: of x and of its gradient. bias, layer_scale: [D]. drop_path: [B].
    """

    x: Tensor | None
    dtype: torch.dtype
    bias: Tensor | None = None
    layer_scale: Tensor | None = None
    drop_path: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether x is added as it is."""
        return self.bias is None and self.layer_scale is None and self.drop_path is None

    def shares_gradient(self, residual: torch.dtype) -> bool:
        """Whether the gradient of x is the very tensor that is the gradient of the residual."""
        return self.dtype == residual and self.layer_scale is None and self.drop_path is None

    @property
    def vectors(self) -> int:
        """How many of bias and layer_scale there are."""
        return (self.bias is not None) + (self.layer_scale is not None)

    def in_float32(self) -> Optional3:
        """bias, layer_scale and drop_path as the kernels take them; no copy of what is float32 already."""
        bias, scale, drop = self.bias, self.layer_scale, self.drop_path
        return (
            None if bias is None else bias.float().contiguous(),
            None if scale is None else scale.float().contiguous(),
            None if drop is None else drop.float().contiguous(),
        )


class Outputs(NamedTuple):
    """normalized: in the dtype asked for. new_residual: in the residual's; the residual itself where nothing is added.
    mean, rstd: `[B, N]`, of the rows of new_residual."""

    normalized: Tensor
    new_residual: Tensor
    mean: Tensor
    rstd: Tensor


class Gradients(NamedTuple):
    """residual: in its dtype. sums: [K, D] in the statistics' dtype, the gradients of weight, bias, then the branch's
    bias and layer_scale where it has them. branch: None without a branch, and where the gradient of the residual is
    also that of the branch.
    """

    residual: Tensor
    sums: Tensor
    branch: Tensor | None = None
