"""The reference's gradients by finite differences, and what autograd may do with the op."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast import sigreg_loss
from jepa_fast.bench.baselines.sigreg import sigreg
from jepa_fast.bench.measure import check_error, peak_memory
from jepa_fast.kernels.sigreg.settings import VARIANTS

IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "reference"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(draw, columns, variant: str) -> None:
    x, directions = draw(2, 5, 3, dtype=torch.float64).requires_grad_(), columns(3, 4).double()
    assert torch.autograd.gradcheck(
        lambda y: sigreg_loss(y, directions=directions, variant=variant, num_knots=6), (x,)
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_second_backward_is_bit_equal(draw, implementation: str) -> None:
    x = draw(30, 8).requires_grad_()
    loss = sigreg_loss(x, num_slices=40, implementation=implementation)
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_upstream_gradient_scales(draw, with_gradient, implementation: str) -> None:
    x = draw(30, 8)
    _, plain = with_gradient(lambda y: sigreg_loss(y, implementation=implementation), x)
    _, scaled = with_gradient(lambda y: 4.0 * sigreg_loss(y, implementation=implementation), x)
    assert torch.equal(scaled, 4.0 * plain)


def test_loss_scale_keeps_float16_gradients_alive(draw, with_gradient) -> None:
    x = draw(4000, 16, dtype=torch.float16)
    _, scaled = with_gradient(lambda y: 65536.0 * 0.02 * sigreg_loss(y, num_slices=64), x)
    _, true = with_gradient(
        lambda y: 65536.0 * 0.02 * sigreg_loss(y, num_slices=64, implementation="reference"), x.float()
    )
    assert scaled.dtype == torch.float16
    torch.testing.assert_close(scaled.float(), true, rtol=2**-10, atol=2e-5 * true.abs().max().item())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_upstream_not_finite_is_seen_by_a_gradient_scaler(draw, implementation: str) -> None:
    x = draw(10, 8).requires_grad_()
    (torch.inf * sigreg_loss(x, implementation=implementation)).backward()
    assert not x.grad.isfinite().any()


def test_the_gradient_of_a_gradient_is_refused(draw) -> None:
    x = draw(10, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(sigreg_loss(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_no_gradient_is_formed_that_nobody_asked_for(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    from jepa_fast.kernels.sigreg import reference

    wanted = []
    original = reference.loss_and_gradient

    def watched(*arguments: object) -> tuple[Tensor, Tensor | None]:
        wanted.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(reference, "loss_and_gradient", watched)
    x = draw(10, 8)
    sigreg_loss(x, implementation="reference")
    with torch.no_grad():
        sigreg_loss(x.requires_grad_(), implementation="reference")
    sigreg_loss(x, implementation="reference")
    assert wanted == [False, False, True]


def test_view_of_a_leaf_receives_its_gradient(draw, columns) -> None:
    leaf = draw(30, 1).requires_grad_()
    directions = columns(8, 20)
    sigreg_loss(leaf.expand(-1, 8), directions=directions).backward()
    wide = leaf.detach().double().expand(-1, 8).contiguous().requires_grad_()
    sigreg_loss(wide, directions=directions.double()).backward()
    torch.testing.assert_close(leaf.grad.double(), wide.grad.sum(1, keepdim=True), rtol=1e-4, atol=1e-7)


@pytest.mark.native
def test_gradient_in_any_number_of_slices_at_a_time(draw, with_gradient, monkeypatch) -> None:
    from jepa_fast.kernels.sigreg import native

    x = draw(300, 24)
    exact = with_gradient(lambda y: sigreg_loss(y, num_slices=200), x.double())
    single = with_gradient(lambda y: sigreg_loss(y, num_slices=200), x)
    monkeypatch.setattr(native, "_VALUES", 64 * 300)
    several = with_gradient(lambda y: sigreg_loss(y, num_slices=200), x)
    assert check_error(several, single, exact).passed


@pytest.mark.native
def test_extra_memory_is_a_fiftieth_of_the_published_loss(draw, columns) -> None:
    x, directions = draw(1024, 64).requires_grad_(), columns(64, 512)

    def ours() -> Tensor:
        return torch.autograd.grad(sigreg_loss(x, directions=directions), x)[0]

    def theirs() -> Tensor:
        return torch.autograd.grad(sigreg(x, directions), x)[0]

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-6)
    assert peak_memory(ours) <= peak_memory(theirs) / 50


@pytest.mark.native
def test_a_step_against_the_loss_lowers_it(draw) -> None:
    loss: Callable[[Tensor], Tensor] = lambda y: sigreg_loss(y, num_slices=128)  # noqa: E731
    x = (0.3 * draw(500, 16)).requires_grad_()
    before = loss(x)
    (gradient,) = torch.autograd.grad(before, x)
    assert loss(x - 1.0 * gradient) < before
