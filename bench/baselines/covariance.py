"""The covariance-regularised losses as published training code writes them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def off_diagonal(matrix: Tensor) -> Tensor:
    """The entries beside the diagonal of [D, D]: without its last entry the flat matrix is D - 1 rows of D + 1, each
    with one diagonal entry, the first."""
    size = matrix.shape[0]
    return matrix.flatten()[:-1].view(size - 1, size + 1)[:, 1:].flatten()


def vicreg_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """VICReg, arXiv 2105.04906: both D x D covariance matrices, then their off-diagonal copies squared in place."""
    rows, features = z_a.shape
    distance = F.mse_loss(z_a, z_b)
    z_a, z_b = z_a - z_a.mean(dim=0), z_b - z_b.mean(dim=0)
    hinges = [F.relu(1 - torch.sqrt(z.var(dim=0) + eps)).mean() / 2 for z in (z_a, z_b)]
    matrices = [(z.T @ z) / (rows - 1) for z in (z_a, z_b)]
    squares = [off_diagonal(matrix).pow_(2).sum().div(features) for matrix in matrices]
    return invariance * distance + variance * sum(hinges) + covariance * sum(squares)


def covariance_loss(z: Tensor) -> Tensor:
    """The covariance term of VICReg for one view."""
    rows, features = z.shape
    z = z - z.mean(dim=0)
    return off_diagonal((z.T @ z) / (rows - 1)).pow_(2).sum().div(features)


def variance_loss(z: Tensor, *, eps: float = 1e-4) -> Tensor:
    """The variance term of VICReg for one view."""
    return F.relu(1 - torch.sqrt(z.var(dim=0) + eps)).mean()


def barlow_twins_loss(z_a: Tensor, z_b: Tensor, *, off_diagonal_weight: float = 0.0051) -> Tensor:
    """Barlow Twins, arXiv 2103.03230: batch normalisation without parameters, then the D x D cross-correlation."""
    normalized = [F.batch_norm(z, None, None, training=True) for z in (z_a, z_b)]
    matrix = normalized[0].T @ normalized[1]
    matrix.div_(z_a.shape[0])
    on_diagonal = torch.diagonal(matrix).add_(-1).pow_(2).sum()
    return on_diagonal + off_diagonal_weight * off_diagonal(matrix).pow_(2).sum()
