"""The latent prediction loss in plain PyTorch: the oracle, and the fallback.

    z_r    = (t_r - mean(t_r)) / sqrt(var(t_r) + eps)     t_r: the target row that index selects (LayerNorm, no affine)
    loss   = mean over rows r and features d of l(p_rd - z_rd)
    l(x)   = x^2 / (2 beta) where |x| < beta, else |x| - beta / 2        smooth-L1     (I-JEPA, arXiv 2301.08243)
           = |x|                                                         L1            (V-JEPA, arXiv 2404.08471)
           = x^2                                                         MSE

The gather comes first: normalisation is per row, so only the selected rows are ever touched.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .index import check_values
from .settings import Settings


def why_not(prediction: Tensor, target: Tensor) -> list[str]:
    return []


def loss(prediction: Tensor, target: Tensor, index: Tensor | None, settings: Settings) -> Tensor:
    """Differentiable in prediction and target. Half precision is widened to float32 first."""
    working = torch.float64 if torch.float64 in (prediction.dtype, target.dtype) else torch.float32
    goal = _selected_rows(target, index, *prediction.shape[:2]).to(working)
    if settings.normalize_target:
        goal = F.layer_norm(goal, goal.shape[-1:], eps=settings.eps)
    prediction = prediction.to(working)
    if settings.kind == "smooth_l1":
        return F.smooth_l1_loss(prediction, goal, beta=settings.beta)
    return F.l1_loss(prediction, goal) if settings.kind == "l1" else F.mse_loss(prediction, goal)


def _selected_rows(target: Tensor, index: Tensor | None, rows: int, tokens: int) -> Tensor:
    """The target rows [rows, K, D]: prediction row p reads sample p % B at the tokens of index row p % Q."""
    row = torch.arange(rows, device=target.device)
    sample = row % target.shape[0]
    if index is None:
        return target[sample, :tokens]
    return target[sample.unsqueeze(1), index[row % index.shape[0]]]


def loss_and_gradient(
    prediction: Tensor, target: Tensor, index: Tensor | None, settings: Settings, upstream: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    check_values(index, target)
    with torch.set_grad_enabled(upstream is not None):
        prediction = prediction.detach().requires_grad_(upstream is not None)
        value = loss(prediction, target.detach(), index, settings)
    gradient = None if upstream is None else torch.autograd.grad(value, prediction, upstream)[0]
    return value.detach(), gradient
