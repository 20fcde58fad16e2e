"""The covariance losses in plain PyTorch: the oracle, and the fallback.

    C      = Zc' Zc / (N - 1),  Zc = Z - mean over rows                       covariances of a view Z [N, D]
    VICReg (arXiv 2105.04906, equations 1 to 6)
        invariance * mean (A - B)^2 + variance * sum over views of mean_d max(0, 1 - sqrt(C_dd + eps))
        + covariance * sum over views of sum_{i != j} C_ij^2 / D
    Barlow Twins (arXiv 2103.03230, equations 1 and 2), X and Y the views with features of mean 0 and variance 1
        C = X' Y / N
        sum_i (C_ii - 1)^2 + off_diagonal * sum_{i != j} C_ij^2
"""

import torch
from torch import Tensor

from ..runtime import collective
from .settings import BARLOW, Group, Result, Settings, Views


def why_not(*views: Tensor) -> list[str]:
    return []


def loss(views: Views, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, deviation, rank) of settings.Result; the loss is differentiable. Half precision is widened first."""
    working = torch.float64 if views[0].dtype == torch.float64 else torch.float32
    widened = tuple(view.to(working) for view in views)
    deviation = torch.stack([view.detach().std(dim=0) for view in widened])
    value, rank = (_barlow if settings.form == BARLOW else _vicreg)(widened, settings)
    return value, deviation, rank.detach()


def _vicreg(views: Views, settings: Settings) -> tuple[Tensor, Tensor]:
    rows, features = views[0].shape
    total = views[0].new_zeros(())
    ranks = []
    if settings.invariance and len(views) == 2:
        total = total + settings.invariance * (views[0] - views[1]).square().mean()
    for view in views:
        centred = view - view.mean(dim=0)
        if settings.variance:
            deviation = torch.sqrt(centred.square().sum(dim=0) / (rows - 1) + settings.eps)
            total = total + settings.variance * torch.relu(1.0 - deviation).mean()
        if settings.covariance:
            matrix = centred.T @ centred / (rows - 1)
            squares = _off_diagonal(matrix).square().sum()
            total = total + settings.covariance * (squares / settings.covariance_divisor(features))
            ranks.append(_rank(matrix))
        else:
            ranks.append(view.new_full((), torch.nan))
    return total, torch.stack(ranks)


def _barlow(views: Views, settings: Settings) -> tuple[Tensor, Tensor]:
    rows, features = views[0].shape
    normalized = []
    for view in views:
        centred = view - view.mean(dim=0)
        variance = centred.square().sum(dim=0)
        if settings.unbiased:
            # std rather than a root of ours: its gradient at a constant feature is 0
            normalized.append(centred / (view.std(dim=0) + settings.eps))
        else:
            normalized.append(centred / torch.sqrt(variance / rows + settings.eps))
    matrix = normalized[0].T @ normalized[1] / rows
    squares = (matrix.diagonal() - 1.0).square().sum()
    squares = squares + settings.off_diagonal * _off_diagonal(matrix).square().sum()
    return settings.covariance * squares, _rank(matrix).unsqueeze(0)


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix - torch.diag(matrix.diagonal())


def _rank(matrix: Tensor) -> Tensor:
    """The participation ratio (sum of eigenvalues)^2 / (sum of their squares), which needs no eigenvalues."""
    return matrix.trace().square() / matrix.square().sum()


def loss_and_gradients(views: Views, settings: Settings, gradients: bool, group: Group | None) -> Result:
    mine = slice(None)
    if group is not None:
        views, mine = collective.gather_rows(views, group)
        collective.check_rows(views[0].shape[0])
    with torch.set_grad_enabled(gradients):
        leaves = tuple(view.detach().requires_grad_(gradients) for view in views)
        value, deviation, rank = loss(leaves, settings)
    found = None
    if gradients:
        found = tuple(g[mine] for g in torch.autograd.grad(value, leaves))
    return Result(value.detach(), deviation, rank, found)
