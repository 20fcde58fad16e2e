from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import jepa_fast
from jepa_fast.bench.baselines import covariance as published

Outputs = tuple[Tensor, ...]

# Every loss by name: how many views it takes, and the options that choose its variant.
LOSSES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "covariance": ("covariance_loss", 1, {}),
    "covariance_pairs": ("covariance_loss", 1, {"normalization": "pairs"}),
    "variance": ("variance_loss", 1, {}),
    "vicreg": ("vicreg_loss", 2, {}),
    "vicreg_eb_jepa": ("vicreg_loss", 2, {"normalization": "eb_jepa"}),
    "barlow": ("barlow_twins_loss", 2, {}),
    "barlow_unbiased": ("barlow_twins_loss", 2, {"normalization": "stable_pretraining"}),
}


def _draw(
    rows: int,
    features: int,
    dtype: torch.dtype = torch.float32,
    *,
    mean: float = 0.3,
    distance: float = 0.5,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Two views near each other, with features of different deviation, on both sides of the hinge."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.5, 1.5, features)
    first = torch.randn(rows, features, generator=generator) * scale
    second = first + distance * torch.randn(rows, features, generator=generator)
    return (first + mean).to(dtype), (second - mean).to(dtype)


@pytest.fixture
def draw() -> Callable[..., tuple[Tensor, Tensor]]:
    return _draw


def _evaluate(name: str, views: Outputs, **options: Any) -> Outputs:
    """(loss, gradient of each view) of an entry of LOSSES."""
    function, count, chosen = LOSSES[name]
    leaves = tuple(view.detach().requires_grad_() for view in views[:count])
    loss = getattr(jepa_fast, function)(*leaves, **chosen, **options)
    return (loss.detach(), *torch.autograd.grad(loss, leaves))


@pytest.fixture
def evaluate() -> Callable[..., Outputs]:
    return _evaluate


def _oracle(name: str, views: Outputs, **options: Any) -> Outputs:
    return _evaluate(name, tuple(view.double() for view in views), implementation="reference", **options)


@pytest.fixture
def oracle() -> Callable[..., Outputs]:
    """The reference in float64, itself held against the published formulas in test_semantics.py."""
    return _oracle


def _eager(name: str, views: Outputs) -> Outputs:
    """The published formulation in the dtype given."""
    count = LOSSES[name][1]
    leaves = tuple(view.detach().requires_grad_() for view in views[:count])
    features = views[0].shape[1]
    if name == "vicreg_eb_jepa":
        distance = torch.nn.functional.mse_loss(*leaves)
        hinges = sum(published.variance_loss(leaf) for leaf in leaves)
        squares = sum(published.covariance_loss(leaf) for leaf in leaves) / (features - 1)
        loss = 25.0 * distance + 25.0 * hinges + squares
    elif name == "covariance_pairs":
        loss = published.covariance_loss(*leaves) / (features - 1)
    elif name == "barlow_unbiased":
        normalized = [(leaf - leaf.mean(0)) / (leaf.std(0) + 1e-5) for leaf in leaves]
        matrix = normalized[0].T @ normalized[1] / leaves[0].shape[0]
        loss = (matrix.diagonal() - 1).square().sum()
        loss = loss + 0.0051 * published.off_diagonal(matrix).square().sum()
    else:
        functions = {
            "covariance": published.covariance_loss,
            "variance": published.variance_loss,
            "vicreg": published.vicreg_loss,
            "barlow": published.barlow_twins_loss,
        }
        loss = functions[name](*leaves)
    gradients = torch.autograd.grad(loss, leaves)
    return (loss.detach().to(torch.promote_types(loss.dtype, torch.float32)), *gradients)


@pytest.fixture
def eager() -> Callable[..., Outputs]:
    return _eager
