"""The published formulations of the ops compute what the references compute."""

from collections.abc import Callable

import pytest
import torch

import jepa_fast
from jepa_fast.bench.baselines.ema import ema_foreach_lerp_, ema_loop_
from jepa_fast.bench.baselines.latent_loss import latent_loss


@pytest.mark.parametrize("update", [ema_loop_, ema_foreach_lerp_])
def test_ema(update: Callable[..., None]) -> None:
    random = torch.Generator().manual_seed(0)
    targets, sources = (
        [torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((3, 5), (7,), ())]
        for _ in range(2)
    )
    expected = [target.clone() for target in targets]
    update(targets, sources, 0.9)
    jepa_fast.ema_update_(expected, sources, 0.9, implementation="reference")
    torch.testing.assert_close(targets, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "mse"])
def test_latent_loss(kind: str) -> None:
    random = torch.Generator().manual_seed(0)
    prediction = torch.randn(6, 4, 8, generator=random, dtype=torch.float64).requires_grad_()
    target = torch.randn(2, 9, 8, generator=random, dtype=torch.float64)
    index = torch.rand(6, 9, generator=random).argsort(1)[:, :4]
    loss = latent_loss(prediction, target, index.chunk(3), kind=kind)
    expected = jepa_fast.latent_prediction_loss(
        prediction, target, index, kind=kind, implementation="reference"
    )
    gradients = [torch.autograd.grad(value, prediction)[0] for value in (loss, expected)]
    torch.testing.assert_close([loss, gradients[0]], [expected, gradients[1]], rtol=1e-13, atol=1e-15)
