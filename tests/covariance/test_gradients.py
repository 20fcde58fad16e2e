"""The reference's gradients by finite differences, and what autograd may do with the losses."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast import barlow_twins_loss, covariance_loss, variance_loss, vicreg_loss
from jepa_fast.bench.baselines import covariance as published
from jepa_fast.bench.measure import check_error, peak_memory
from jepa_fast.kernels.covariance import api

LOSSES = (
    "covariance",
    "covariance_pairs",
    "variance",
    "vicreg",
    "vicreg_eb_jepa",
    "barlow",
    "barlow_unbiased",
)
BOTH = [pytest.param("native", marks=pytest.mark.native), "reference"]


@pytest.mark.parametrize("name", ["vicreg", "eb_jepa"])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_gradcheck_vicreg(draw, shape: tuple[int, int], name: str) -> None:
    views = [view.double().requires_grad_() for view in draw(*shape)]
    assert torch.autograd.gradcheck(lambda a, b: vicreg_loss(a, b, normalization=name), views)


@pytest.mark.parametrize("name", ["barlow_twins", "stable_pretraining"])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_gradcheck_barlow(draw, shape: tuple[int, int], name: str) -> None:
    views = [view.double().requires_grad_() for view in draw(*shape)]
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins_loss(a, b, normalization=name), views)


def test_gradcheck_one_view(draw) -> None:
    view = draw(5, 6)[0].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: covariance_loss(z, normalization="pairs"), view)


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(9, 40), (40, 9)])
def test_second_backward_is_bit_equal(draw, implementation: str, name: str, shape: tuple[int, int]) -> None:
    function, count, options = {
        "covariance": (covariance_loss, 1, {}),
        "covariance_pairs": (covariance_loss, 1, {"normalization": "pairs"}),
        "variance": (variance_loss, 1, {}),
        "vicreg": (vicreg_loss, 2, {}),
        "vicreg_eb_jepa": (vicreg_loss, 2, {"normalization": "eb_jepa"}),
        "barlow": (barlow_twins_loss, 2, {}),
        "barlow_unbiased": (barlow_twins_loss, 2, {"normalization": "stable_pretraining"}),
    }[name]
    leaves = [view.requires_grad_() for view in draw(*shape)[:count]]
    loss = 3.0 * function(*leaves, **options, implementation=implementation)
    first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("implementation", BOTH)
def test_upstream_gradient_scales(draw, oracle, eager, implementation: str) -> None:
    views = draw(20, 50)
    leaves = [view.clone().requires_grad_() for view in views]
    (3.0 * vicreg_loss(*leaves, implementation=implementation)).backward()
    true, theirs = ([3.0 * gradient for gradient in f("vicreg", views)[1:]] for f in (oracle, eager))
    assert check_error([leaf.grad for leaf in leaves], theirs, true).passed


@pytest.mark.parametrize("implementation", BOTH)
def test_loss_scale_keeps_float16_gradients_alive(draw, implementation: str) -> None:
    first, second = draw(64, 2048, torch.float16, mean=0.0, distance=0.01)
    options = {"variance": 0.0, "covariance": 0.0, "invariance": 1.0, "implementation": implementation}
    scale = 65536.0
    plain, scaled = (first.clone().requires_grad_() for _ in range(2))
    vicreg_loss(plain, second, **options).backward()
    (scale * vicreg_loss(scaled, second, **options)).backward()
    true = scale * 2.0 * (first.double() - second.double()) / first.numel()
    assert (scaled.grad.double() - true).abs().max() <= 2.0 * torch.finfo(
        torch.float16
    ).eps * true.abs().max()
    assert (plain.grad.double() - true / scale).abs().max() <= 2.0**-24


@pytest.mark.parametrize("implementation", BOTH)
def test_upstream_not_finite_is_seen_by_a_gradient_scaler(draw, implementation: str) -> None:
    leaves = [view.requires_grad_() for view in draw(8, 20)]
    (math.inf * vicreg_loss(*leaves, implementation=implementation)).backward()
    assert not leaves[0].grad.isfinite().any()


@pytest.mark.native
def test_a_gradient_is_formed_once_and_only_where_wanted(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    formed = []
    native = api.OPERATION.module("native")
    original = native.loss_and_gradients

    def watched(views, settings, gradients, group):
        formed.append(gradients)
        return original(views, settings, gradients, group)

    monkeypatch.setattr(native, "loss_and_gradients", watched)
    first, second = draw(8, 20)
    vicreg_loss(first, second)
    with torch.no_grad():
        vicreg_loss(first.clone().requires_grad_(), second)
    assert formed == [False, False]
    vicreg_loss(first.requires_grad_(), second).backward()
    assert formed == [False, False, True]


def test_one_view_may_be_without_gradient(draw, evaluate) -> None:
    first, second = draw(8, 20)
    for name, function in (("vicreg", vicreg_loss), ("barlow", barlow_twins_loss)):
        expected = evaluate(name, (first, second))
        for which in (0, 1):
            views = [first.clone(), second.clone()]
            views[which].requires_grad_()
            function(*views).backward()
            assert torch.equal(views[which].grad, expected[1 + which])
            assert views[1 - which].grad is None


def test_one_tensor_as_both_views(draw) -> None:
    first = draw(8, 20)[0].requires_grad_()
    for function in (vicreg_loss, barlow_twins_loss):
        found = torch.autograd.grad(function(first, first), first)[0]
        double = first.detach().double().requires_grad_()
        expected = torch.autograd.grad(function(double, double), double)[0]
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.native
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(vicreg_loss, published.vicreg_loss), (barlow_twins_loss, published.barlow_twins_loss)],
)
def test_extra_memory_is_small_in_the_gram_form(
    draw, ours: Callable[..., Tensor], theirs: Callable[..., Tensor]
) -> None:
    leaves = [view.requires_grad_() for view in draw(64, 2048)]

    def peak(loss: Callable[..., Tensor]) -> int:
        return peak_memory(lambda: torch.autograd.grad(loss(*leaves), leaves))

    assert peak(ours) <= 0.05 * peak(theirs)
