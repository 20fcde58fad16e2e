from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import latent_prediction_loss

CANARY = 77.0
Draw = Callable[..., tuple[Tensor, Tensor, Tensor]]


def _draw(
    samples: int = 2,
    length: int = 24,
    masks: int = 2,
    tokens: int = 5,
    features: int = 33,
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32),
    mean: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = masks * samples
    prediction = 2.0 * torch.randn(rows, tokens, features, generator=generator)
    target = 3.0 * torch.randn(samples, length, features, generator=generator) + mean
    index = torch.randint(length, (rows, tokens), generator=generator)
    return prediction.to(dtypes[0]), target.to(dtypes[1]), index


@pytest.fixture
def draw() -> Draw:
    """Makes (prediction [masks * samples, tokens, features], target [samples, length, features], index)."""
    return _draw


def _loss_and_gradient(prediction: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    prediction = prediction.detach().requires_grad_()
    loss = latent_prediction_loss(prediction, *arguments, **options)
    loss.backward()
    assert prediction.grad is not None
    return loss.detach(), prediction.grad


@pytest.fixture
def loss_and_gradient() -> Callable[..., tuple[Tensor, Tensor]]:
    return _loss_and_gradient


def _oracle(
    prediction: Tensor, target: Tensor, index: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    return _loss_and_gradient(prediction.double(), target.double(), index, **options)


@pytest.fixture
def oracle() -> Callable[..., tuple[Tensor, Tensor]]:
    """The reference in float64, itself held against PyTorch's own functions in test_semantics.py."""
    return _oracle


def _eager(
    prediction: Tensor,
    target: Tensor,
    index: Tensor | None,
    *,
    kind: str = "smooth_l1",
    beta: float = 1.0,
    normalize_target: bool = True,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """As published code writes it, in the dtypes given: LayerNorm of all tokens, gather, penalty."""
    functional = torch.nn.functional
    rows, tokens, features = prediction.shape
    samples = target.shape[0]
    normalized = functional.layer_norm(target, (features,), eps=eps) if normalize_target else target
    if index is None:
        index = torch.arange(tokens, device=target.device).expand(rows, tokens)
    if index.shape[0] == samples:
        index = index.repeat(rows // samples, 1)
    chosen = normalized.repeat(rows // samples, 1, 1).gather(1, index[..., None].expand(-1, -1, features))
    prediction = prediction.detach().requires_grad_()
    if kind == "smooth_l1":
        loss = functional.smooth_l1_loss(prediction, chosen, beta=beta)
    else:
        loss = (functional.l1_loss if kind == "l1" else functional.mse_loss)(prediction, chosen)
    loss.backward()
    assert prediction.grad is not None
    accumulated = torch.promote_types(loss.dtype, torch.float32)  # the dtype in which our op returns it
    return loss.detach().to(accumulated), prediction.grad


@pytest.fixture
def eager() -> Callable[..., tuple[Tensor, Tensor]]:
    return _eager


def _poisoned_memory(implementation: str, prediction: Tensor, target: Tensor, index: Tensor) -> None:
    rooms: list[Tensor] = []
    empty = torch.empty

    def poisoned(*shape: Any, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        wanted = empty(*shape, dtype=dtype, device="meta")
        room = torch.full((wanted.numel() + 32,), torch.nan, dtype=dtype, device=device)
        room[:16] = room[-16:] = CANARY
        rooms.append(room)
        return room[16:-16].view(wanted.shape)

    leaf = prediction.requires_grad_()
    expected = latent_prediction_loss(leaf, target, index, implementation=implementation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        loss = latent_prediction_loss(leaf, target, index, implementation=implementation)
        (2.0 * loss).backward()
    assert torch.equal(loss, expected)
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert len(rooms) >= 3  # loss or row losses, twice, and at least one gradient
    assert all((room[:16] == CANARY).all() and (room[-16:] == CANARY).all() for room in rooms)


@pytest.fixture
def poisoned_memory() -> Callable[..., None]:
    """Checks that outputs that come from NaN-poisoned memory are written whole, and canaries round them are not."""
    return _poisoned_memory
