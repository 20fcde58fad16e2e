from collections.abc import Callable

import pytest
import torch
from torch import Tensor

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


def _loss_and_gradient(prediction: Tensor, *arguments: object, **options: object) -> tuple[Tensor, Tensor]:
    from jepa_fast import latent_prediction_loss

    prediction = prediction.detach().requires_grad_()
    loss = latent_prediction_loss(prediction, *arguments, **options)  # type: ignore[arg-type]
    loss.backward()
    assert prediction.grad is not None
    return loss.detach(), prediction.grad


@pytest.fixture
def loss_and_gradient() -> Callable[..., tuple[Tensor, Tensor]]:
    return _loss_and_gradient


def _oracle(
    prediction: Tensor, target: Tensor, index: Tensor | None, **options: object
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
