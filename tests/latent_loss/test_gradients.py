"""The reference's gradients by finite differences, and what autograd may do with the op."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast import latent_prediction_loss
from jepa_fast.bench.baselines.latent_loss import latent_loss as published
from jepa_fast.bench.measure import check_error, peak_memory
from jepa_fast.kernels.latent_loss import api

Pair = tuple[Tensor, Tensor]


@pytest.mark.parametrize("normalize_target", [True, False])
@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "mse"])
def test_gradcheck(draw, kind: str, normalize_target: bool) -> None:
    double = (torch.float64, torch.float64)
    prediction, target, index = draw(tokens=2, features=5, length=3, dtypes=double)
    goal = target[torch.arange(4)[:, None] % 2, index]
    if normalize_target:
        goal = torch.nn.functional.layer_norm(goal, (5,))
    difference = prediction - goal
    for kink in (0.0, 1.0):  # differences that finite differences would carry over a kink
        near = ((difference.abs() - kink).abs() < 1e-3).double()
        prediction = prediction + 0.01 * near
    prediction.requires_grad_()
    target.requires_grad_()

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        return latent_prediction_loss(prediction, target, index, kind=kind, normalize_target=normalize_target)

    assert torch.autograd.gradcheck(loss, (prediction, target))
    assert torch.autograd.gradcheck(lambda p: loss(p, target.detach()), (prediction,))


@pytest.mark.native
def test_gradient_of_the_target_asks_for_the_reference(draw) -> None:
    prediction, target, index = draw()
    target.requires_grad_()
    with pytest.raises(
        RuntimeError, match="implementation: native cannot serve latent_loss: target requires"
    ):
        latent_prediction_loss(prediction, target, index, implementation="native")
    loss = latent_prediction_loss(prediction.requires_grad_(), target, index)
    loss.backward()
    assert prediction.grad is not None
    assert target.grad is not None
    unread = torch.ones(2, 24, dtype=torch.bool)
    unread[torch.arange(4)[:, None] % 2, index] = False
    assert (target.grad[unread] == 0).all()
    with torch.no_grad():  # nothing to differentiate: the kernel may serve
        assert latent_prediction_loss(prediction, target, index, implementation="native").grad_fn is None


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=pytest.mark.native), "reference"])
def test_second_backward_is_bit_equal(draw, implementation: str) -> None:
    prediction, target, index = draw()
    prediction.requires_grad_()
    loss = latent_prediction_loss(prediction, target, index, implementation=implementation)
    first, second = (torch.autograd.grad(loss, prediction, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_upstream_gradient_scales(draw, oracle: Callable[..., Pair], eager: Callable[..., Pair]) -> None:
    prediction, target, index = draw()
    leaf = prediction.clone().requires_grad_()
    (3.0 * latent_prediction_loss(leaf, target, index)).backward()
    true, theirs = (3.0 * f(prediction, target, index)[1] for f in (lambda *a: oracle(*a), eager))
    assert check_error([leaf.grad], [theirs], [true]).passed


def test_loss_scale_keeps_float16_gradients_alive(draw) -> None:
    half = (torch.float16, torch.float16)
    prediction, target, index = draw(tokens=200, features=384, length=256, dtypes=half)
    plain, scaled = (prediction.clone().requires_grad_() for _ in range(2))
    latent_prediction_loss(plain, target, index, kind="l1").backward()
    (65536.0 * latent_prediction_loss(scaled, target, index, kind="l1")).backward()
    true = (65536.0 / prediction.numel()) * torch.ones((), dtype=torch.float64)
    assert (scaled.grad.abs() == true.to(torch.float16)).all()
    assert (plain.grad.abs().double() - true / 65536).abs().max() <= 2.0**-25  # half of the smallest float16


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=pytest.mark.native), "reference"])
def test_upstream_not_finite_is_seen_by_a_gradient_scaler(draw, implementation: str) -> None:
    prediction, target, index = draw()
    prediction.requires_grad_()
    (math.inf * latent_prediction_loss(prediction, target, index, implementation=implementation)).backward()
    assert not prediction.grad.isfinite().any()


@pytest.mark.native
def test_no_gradient_is_formed_that_nobody_asked_for(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    formed = []
    native = api.OPERATION.module("native")
    original = native.loss_and_gradient

    def watched(*arguments):
        result = original(*arguments)
        formed.append(result[1] is not None)
        return result

    monkeypatch.setattr(native, "loss_and_gradient", watched)
    prediction, target, index = draw()
    latent_prediction_loss(prediction, target, index)
    with torch.no_grad():
        latent_prediction_loss(prediction.clone().requires_grad_(), target, index)
    assert formed == [False, False]
    loss = latent_prediction_loss(prediction.requires_grad_(), target, index)
    loss.backward()
    assert formed == [False, False, True]  # one pass for both


@pytest.mark.native
def test_extra_memory_is_a_quarter_of_the_published_loss() -> None:
    samples, length, masks, tokens, features = 16, 256, 4, 44, 384
    prediction = torch.randn(masks * samples, tokens, features, requires_grad=True)
    target = torch.randn(samples, length, features)
    index = torch.randint(length, (masks * samples, tokens))

    def ours() -> Tensor:
        return torch.autograd.grad(latent_prediction_loss(prediction, target, index), prediction)[0]

    def theirs() -> Tensor:
        return torch.autograd.grad(published(prediction, target, index.split(samples)), prediction)[0]

    torch.testing.assert_close(ours(), theirs())
    assert peak_memory(ours) <= 0.25 * peak_memory(theirs)


def test_view_of_a_leaf_receives_its_gradient(draw, oracle: Callable[..., Pair]) -> None:
    prediction, target, index = draw(tokens=5)
    leaf = prediction[:, :1].clone().requires_grad_()
    latent_prediction_loss(leaf.expand(-1, 5, -1), target, index).backward()
    _, true = oracle(prediction[:, :1].expand(-1, 5, -1), target, index)
    torch.testing.assert_close(leaf.grad.double(), true.sum(1, keepdim=True), rtol=1e-5, atol=1e-9)
