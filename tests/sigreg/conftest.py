import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import sigreg_loss
from jepa_fast.bench.baselines.sigreg import sigreg

CANARY = 77.0
Pair = tuple[Tensor, Tensor]


def _draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """Standard normal numbers, drawn in float32 and cast."""
    return _draw


def _columns(features: int, slices: int, seed: int = 1) -> Tensor:
    drawn = _draw(features, slices, seed=seed)
    return drawn / drawn.norm(dim=0)


@pytest.fixture
def columns() -> Callable[..., Tensor]:
    """Directions [features, slices]."""
    return _columns


def _with_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Pair:
    leaf = x.detach().clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.fixture
def with_gradient() -> Callable[..., Pair]:
    """(loss, gradient) of a function of x."""
    return _with_gradient


@pytest.fixture
def hold() -> Callable[..., None]:
    """Holds an implementation on x and directions to the error budget against the published code and the oracle."""
    from jepa_fast.bench.measure import check_error

    def check(implementation: str, x: Tensor, directions: Tensor, **options: Any) -> None:
        ours = _with_gradient(
            lambda y: sigreg_loss(y, directions=directions, implementation=implementation, **options), x
        )
        accumulated = torch.promote_types(x.dtype, torch.float32)
        theirs = _with_gradient(lambda y: sigreg(y.to(accumulated), directions, **options), x)
        exact = _with_gradient(
            lambda y: sigreg_loss(y, directions=directions.double(), implementation="reference", **options),
            x.double(),
        )
        result = check_error(ours, theirs, exact)
        assert result.passed, result.reason

    return check


# ---- the public implementations' formulas, plainly, each as it stands there: x [..., N, D], A [D, M] ----------------


def _lejepa(x: Tensor, A: Tensor, knots: int = 17, t_max: float = 3.0) -> Tensor:
    t = torch.linspace(0, t_max, knots, dtype=x.dtype)
    trapezoid = torch.full((knots,), 2 * t_max / (knots - 1), dtype=x.dtype)
    trapezoid[[0, -1]] /= 2
    phi = torch.exp(-t.square() / 2)
    phase = (x @ A).unsqueeze(-1) * t
    error = (phase.cos().mean(-3) - phi).square() + phase.sin().mean(-3).square()
    return ((error @ (trapezoid * phi)) * x.shape[-2]).mean()


def _stable_pretraining(x: Tensor, A: Tensor, knots: int = 17, t_max: float = 3.0) -> Tensor:
    return _lejepa(x.flatten(0, -2), A, knots, t_max)


def _eb_jepa(x: Tensor, A: Tensor, knots: int = 10, t_max: float = 3.0) -> Tensor:
    losses = []
    for view in x.reshape(-1, *x.shape[-2:]):
        t = torch.linspace(-t_max, t_max, knots, dtype=x.dtype)
        gaussian = torch.exp(-0.5 * t**2)
        empirical = torch.exp(1j * (view @ A).unsqueeze(2) * t).mean(0)
        losses.append(torch.trapezoid(gaussian * (empirical - gaussian).abs() ** 2, t, dim=1).mean())
    return torch.stack(losses).mean()


def _h_jepa(x: Tensor, A: Tensor, knots: int = 17) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-0.5 * (a[:, None] - b[None, :]) ** 2).mean()

    quantiles = torch.linspace(0.01, 0.99, knots, dtype=x.dtype)
    points = torch.erfinv(2 * quantiles - 1) * math.sqrt(2)
    statistics = []
    for y in (x.flatten(0, -2) @ A).unbind(1):
        y = (y - y.mean()) / (y.std() + 1e-6)
        statistics.append(kernel(y, y) - 2 * kernel(y, points) + kernel(points, points))
    return torch.stack(statistics).mean()


@pytest.fixture
def published() -> dict[str, Callable[..., Tensor]]:
    """By variant: loss(x, directions, knots[, t_max])."""
    return {
        "lejepa": _lejepa,
        "stable_pretraining": _stable_pretraining,
        "lightly": _lejepa,
        "lewm": _lejepa,
        "levljepa": _lejepa,
        "eb_jepa": _eb_jepa,
        "h_jepa": _h_jepa,
    }


def _poisoned_memory(implementation: str, x: Tensor, **options: Any) -> None:
    rooms: list[Tensor] = []
    empty = torch.empty

    def poisoned(*shape: Any, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        wanted = empty(*shape, dtype=dtype, device="meta")
        room = torch.full((wanted.numel() + 32,), torch.nan, dtype=dtype, device=device)
        room[:16] = room[-16:] = CANARY
        rooms.append(room)
        return room[16:-16].view(wanted.shape)

    def loss(leaf: Tensor) -> Tensor:
        return sigreg_loss(leaf, implementation=implementation, **options)

    expected = _with_gradient(loss, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        found = _with_gradient(loss, x)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert len(rooms) >= 2  # directions and sums
    assert all((room[:16] == CANARY).all() and (room[-16:] == CANARY).all() for room in rooms)


@pytest.fixture
def poisoned_memory() -> Callable[..., None]:
    """Checks that outputs that come from NaN-poisoned memory are written whole, and canaries round them are not."""
    return _poisoned_memory
