"""The covariance losses in plain PyTorch: the oracle, and the fallback.

    C      = Zc' Zc / (N - 1),  Zc = Z - mean over rows                       covariances of a view Z [N, D]
    VICReg (arXiv 2105.04906, equations 1 to 6)
        invariance * mean (A - B)^2 + variance * sum over views of mean_d max(0, 1 - sqrt(C_dd + eps))
        + covariance * sum over views of sum_{i != j} C_ij^2 / D
    Barlow Twins (arXiv 2103.03230, equations 1 and 2), X and Y the views with features of mean 0 and variance 1
        C = X' Y / N
        sum_i (C_ii - 1)^2 + off_diagonal * sum_{i != j} C_ij^2

with their gradients written out, since autograd is off inside a registered op.
"""

import torch
from torch import Tensor

from ..runtime import collective
from .settings import BARLOW, Group, Result, Settings, Views


def why_not(*views: Tensor) -> list[str]:
    return []


def loss_and_gradients(views: Views, settings: Settings, gradients: bool, group: Group | None) -> Result:
    """Half precision is widened to float32 first."""
    dtype, mine = views[0].dtype, slice(None)
    if group is not None:
        views, mine = collective.gather_rows(views, group)
        collective.check_rows(views[0].shape[0])
    with torch.no_grad(), torch.autocast(views[0].device.type, enabled=False):
        working = torch.float64 if dtype == torch.float64 else torch.float32
        centred = [view - view.mean(dim=0) for view in (view.to(working) for view in views)]
        form = _barlow if settings.form == BARLOW else _vicreg
        loss, rank, found = form(views, centred, settings)
        deviation = torch.stack([(z.square().sum(dim=0) / (z.shape[0] - 1)).sqrt() for z in centred])
    if not gradients:
        return Result(loss, deviation, rank, None)
    # The range of float16 is too small for gradients that no loss scale has seen yet.
    kept = torch.float32 if dtype == torch.float16 else dtype
    return Result(loss, deviation, rank, tuple(gradient[mine].to(kept) for gradient in found))


def _vicreg(views: Views, centred: list[Tensor], settings: Settings) -> tuple[Tensor, Tensor, list[Tensor]]:
    rows, features = views[0].shape
    loss, ranks = centred[0].new_zeros(()), []
    gradients = [torch.zeros_like(z) for z in centred]
    if settings.invariance and len(views) == 2:
        difference = views[0].to(loss.dtype) - views[1].to(loss.dtype)
        loss = loss + settings.invariance * difference.square().mean()
        gradients[0] += 2.0 * settings.invariance / (rows * features) * difference
        gradients[1] -= 2.0 * settings.invariance / (rows * features) * difference
    for z, gradient in zip(centred, gradients, strict=True):
        if settings.variance:
            deviation = torch.sqrt(z.square().sum(dim=0) / (rows - 1) + settings.eps)
            loss = loss + settings.variance * torch.relu(1.0 - deviation).mean()
            slope = torch.where(deviation < 1.0, -settings.variance / (features * deviation), 0.0)
            gradient += slope * z / (rows - 1)
        if settings.covariance:
            matrix = z.T @ z / (rows - 1)
            ranks.append(_rank(matrix))
            matrix.fill_diagonal_(0.0)
            weight = settings.covariance / settings.covariance_divisor(features)
            loss = loss + weight * matrix.square().sum()
            gradient += 4.0 * weight / (rows - 1) * (z @ matrix)
        else:
            ranks.append(z.new_full((), torch.nan))
    return loss, torch.stack(ranks), gradients


def _barlow(views: Views, centred: list[Tensor], settings: Settings) -> tuple[Tensor, Tensor, list[Tensor]]:
    rows = views[0].shape[0]
    squares = [z.square().sum(dim=0) for z in centred]
    if settings.unbiased:
        deviations = [(square / (rows - 1)).sqrt() for square in squares]
        scales = [1.0 / (deviation + settings.eps) for deviation in deviations]
        # how a normalised feature shrinks as it grows; a constant feature does not
        answers = [torch.where(d == 0, 0.0, 1.0 / ((rows - 1) * d)) for d in deviations]
    else:
        scales = [1.0 / (square / rows + settings.eps).sqrt() for square in squares]
        answers = [scale / rows for scale in scales]
    x, y = (z * scale for z, scale in zip(centred, scales, strict=True))
    matrix = x.T @ y / rows
    rank = _rank(matrix).unsqueeze(0)
    weights = torch.full_like(matrix, settings.covariance * settings.off_diagonal)
    weights.fill_diagonal_(settings.covariance)
    matrix.diagonal().sub_(1.0)
    loss = (weights * matrix.square()).sum()
    slope = 2.0 / rows * weights * matrix
    gradients = []
    for own, other, scale, answer, turned in zip(
        (x, y), (y, x), scales, answers, (slope.T, slope), strict=True
    ):
        gradient = other @ turned
        gradients.append(scale * gradient - answer * (gradient * own).sum(dim=0) * own)
    return loss, rank, gradients


def _rank(matrix: Tensor) -> Tensor:
    """The participation ratio (sum of eigenvalues)^2 / (sum of their squares), which needs no eigenvalues."""
    return matrix.trace().square() / matrix.square().sum()
