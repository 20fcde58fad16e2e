"""The latent prediction loss at I-JEPA's shapes, forward and backward, against the published order."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import jepa_fast
from jepa_fast.bench.baselines.latent_loss import latent_loss
from jepa_fast.bench.measure import Case, ErrorCheck, Trial, check_error

MASKS = 4
TOKENS_PER_MASK = 44  # the mean that the published sampler gives on a 16x16 grid


def cases() -> Iterator[Case]:
    yield _case("smooth_l1", torch.float32)
    yield _case("smooth_l1", torch.bfloat16)
    for kind in ("l1", "mse"):
        for dtype in (torch.float32, torch.bfloat16):
            yield _case(kind, dtype, quick=False)


def _case(kind: str, dtype: torch.dtype, *, quick: bool = True) -> Case:
    batch, tokens, dim = 16, 256, 384
    return Case(
        op="latent_prediction_loss",
        shape=f"{kind} fwd+bwd, B={batch} N={tokens} K={MASKS}x{TOKENS_PER_MASK} D={dim}",
        dtype=str(dtype).removeprefix("torch."),
        build=partial(_build, kind, dtype, (batch, tokens, dim)),
        quick=quick,
    )


def _build(kind: str, dtype: torch.dtype, sizes: tuple[int, int, int], device: torch.device) -> Trial:
    prediction, target, index = tensors(sizes, TOKENS_PER_MASK, dtype, device)
    return Trial(
        ours=partial(ours, prediction, target, index, kind),
        check=partial(check, prediction, target, index, kind),
        implementation=jepa_fast.explain("latent_loss", prediction, target, index).chosen,
        baselines={"I-JEPA eager": partial(eager, prediction, target, index, kind)},
        # Prediction read, gradient written, and each token that a mask chose read once.
        bytes=2 * prediction.nbytes + min(prediction.nbytes, target.nbytes),
    )


def tensors(
    sizes: tuple[int, int, int], tokens_per_mask: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """prediction [M*B, K, D] with a gradient, target [B, N, D] and index [M*B, K]; sizes are B, N, D."""
    batch, tokens, dim = sizes
    random = torch.Generator().manual_seed(0)
    prediction = torch.randn(MASKS * batch, tokens_per_mask, dim, generator=random).to(device, dtype)
    target = torch.randn(batch, tokens, dim, generator=random).to(device, dtype)
    order = torch.rand(MASKS * batch, tokens, generator=random).argsort(dim=1)
    index = order[:, :tokens_per_mask].sort(dim=1).values.to(device)
    return prediction.requires_grad_(), target, index


def ours(
    prediction: Tensor, target: Tensor, index: Tensor, kind: str, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Loss and gradient by the op."""
    loss = jepa_fast.latent_prediction_loss(
        prediction, target, index, kind=kind, implementation=implementation
    )
    return loss, torch.autograd.grad(loss, prediction)[0]


def eager(prediction: Tensor, target: Tensor, index: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Loss and gradient by the published formulation."""
    loss = latent_loss(prediction, target, index.chunk(MASKS), kind=kind)
    return loss, torch.autograd.grad(loss, prediction)[0]


def check(prediction: Tensor, target: Tensor, index: Tensor, kind: str) -> ErrorCheck:
    """Both against the reference in float64, loss and gradient."""
    exact = prediction.detach().double().requires_grad_()
    oracle = ours(exact, target.double(), index, kind, implementation="reference")
    (loss, gradient), (eager_loss, eager_gradient) = (
        ours(prediction, target, index, kind),
        eager(prediction, target, index, kind),
    )
    return check_error((loss, gradient), (eager_loss.float(), eager_gradient), oracle)
