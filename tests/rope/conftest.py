from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import Rope3D, rope_3d
from jepa_fast.bench.baselines.attention import vjepa2_rotary
from jepa_fast.bench.measure import check_error


def _draw(
    head_dim: int = 32,
    dtype: torch.dtype = torch.float32,
    pairing: str = "tiled",
    *,
    layout: str = "shared",
    heads: tuple[int, int] = (4, 2),
    tokens: int = 37,
    device: str = "cpu",
    **options: Any,
) -> tuple[Tensor, Tensor, Rope3D]:
    random = torch.Generator().manual_seed(0)
    samples = () if layout == "packed" else (2,)
    query, key = (torch.randn(*samples, tokens, h, head_dim, generator=random).to(dtype) for h in heads)
    shape = (2, tokens, 3) if layout == "per_sample" else (tokens, 3)
    positions = torch.randint(16, shape, generator=random)
    if layout == "per_sample":
        positions = positions * (15 / 23)  # as V-JEPA 2.1 scales rows and columns
    rope = Rope3D(positions.to(device), pairing=pairing, **options)
    return query.to(device), key.to(device), rope


@pytest.fixture
def draw() -> Callable[..., tuple[Tensor, Tensor, Rope3D]]:
    """Makes (query, key, rope); layout: "shared" and "per_sample" positions, or "packed" tokens."""
    return _draw


def _gradients(query: Tensor, key: Tensor, rope: Rope3D, **options: Any) -> tuple[Tensor, ...]:
    """Both rotated, and the gradients of weighted sums of them."""
    leaves = [x.detach().requires_grad_() for x in (query, key)]
    return _differentiated(rope_3d(leaves[0], rope, leaves[1], **options), leaves)


def _differentiated(rotated: Any, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(1)
    upstream = [torch.randn(x.shape, generator=random).to(x) for x in rotated]
    return *(x.detach() for x in rotated), *torch.autograd.grad(rotated, leaves, upstream)


@pytest.fixture
def gradients() -> Callable[..., tuple[Tensor, ...]]:
    return _gradients


def _eager(query: Tensor, key: Tensor, rope: Rope3D) -> tuple[Tensor, ...]:
    """The published rotation, in the dtype of the query."""
    leaves = [x.detach().requires_grad_() for x in (query, key)]
    positions = [p.to(query.dtype) for p in rope.positions.unsqueeze(-3).unbind(-1)]
    rotated = []
    for x in leaves:
        by_head = x.transpose(-2, -3)[(None,) * (4 - x.ndim)]
        turned = vjepa2_rotary(by_head, positions, interleaved=rope.pairing == "interleaved")
        rotated.append(turned.transpose(-2, -3).reshape(x.shape))
    return _differentiated(rotated, leaves)


@pytest.fixture
def eager() -> Callable[..., tuple[Tensor, ...]]:
    return _eager


def _hold(query: Tensor, key: Tensor, rope: Rope3D, implementation: str) -> None:
    found = _gradients(query, key, rope, implementation=implementation)
    exact = replace(rope, dtype=query.dtype)
    oracle = _gradients(query.double(), key.double(), exact, implementation="reference")
    result = check_error(found, _eager(query, key, rope), oracle)
    assert result.passed, result.reason


@pytest.fixture
def hold() -> Callable[..., None]:
    """Holds an implementation to the budget, forward and backward."""
    return _hold
