"""Calls whose tensors have no memory, or whose derivatives nobody has: served by the dispatcher, or refused."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

from jepa_fast import (
    Rope3D,
    gather_tokens,
    gelu_mlp,
    latent_prediction_loss,
    layer_norm,
    masked_attention,
    patchify,
    rope_3d,
    sigreg_loss,
    vicreg_loss,
)

Call = Callable[..., Tensor]


def rotated(x: Tensor) -> Tensor:
    return rope_3d(x.view(2, 6, 2, 8), Rope3D(torch.zeros(6, 3, device=x.device)))


def mlp(x: Tensor) -> Tensor:
    w1, w2 = x.new_ones(8, 16), x.new_ones(16, 8)
    return gelu_mlp(x, w1, w1[:, 0], w2, w2[:, 0])


def gathered(x: Tensor) -> Tensor:
    return gather_tokens(x, torch.zeros(2, 3, dtype=torch.int64, device=x.device))


# Each takes x [2, 6, 16].
CALLS: dict[str, Call] = {
    "masked_attention": lambda x: masked_attention(*(x.view(2, 6, 2, 8),) * 3),
    "rope_3d": rotated,
    "layer_norm": lambda x: layer_norm(x, x.new_ones(16), x.new_zeros(16)),
    "gelu_mlp": mlp,
    "latent_loss": lambda x: latent_prediction_loss(x, x.detach() + 1),
    "gather_tokens": gathered,
    "patchify": lambda x: patchify(x.view(2, 1, 12, 8), (4, 4)),
    "sigreg": lambda x: sigreg_loss(x.flatten(0, 1), num_slices=8),
    "vicreg": lambda x: vicreg_loss(x.flatten(0, 1), x.flatten(0, 1) * 2),
}
ONCE = ("masked_attention", "layer_norm", "gelu_mlp", "latent_loss", "vicreg")


def negated(*shape: int) -> Tensor:
    """Drawn, and a view of numbers whose negatives are in memory."""
    view = torch.randn(*shape, dtype=torch.complex64).conj().imag
    assert view.is_neg()
    return view


@pytest.mark.parametrize("name", CALLS)
def test_negated_views_have_their_sign(name: str) -> None:
    x = negated(2, 6, 16).requires_grad_()
    dense = x.detach().clone().requires_grad_()
    got, expected = CALLS[name](x), CALLS[name](dense)
    torch.testing.assert_close(got, expected)
    grad = negated(1, *expected.shape)[0]
    got.backward(grad)
    expected.backward(grad.clone())
    torch.testing.assert_close(x.grad, dense.grad)


@pytest.mark.parametrize("name", CALLS)
def test_fake_tensors_have_shapes(name: str) -> None:
    real = CALLS[name](torch.randn(2, 6, 16))
    with FakeTensorMode():
        fake = CALLS[name](torch.randn(2, 6, 16))
    assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize("name", ["masked_attention", "rope_3d", "latent_loss"])
def test_meta_tensors_have_shapes(name: str) -> None:
    assert CALLS[name](torch.randn(2, 6, 16, device="meta")).shape == CALLS[name](torch.randn(2, 6, 16)).shape


@pytest.mark.parametrize("name", ["masked_attention", "rope_3d"])
def test_vmap_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.vmap(CALLS[name])(torch.randn(2, 2, 6, 16))


@pytest.mark.parametrize("name", ["masked_attention", "rope_3d", "layer_norm", "latent_loss", "sigreg"])
def test_forward_mode_is_refused(name: str) -> None:
    x = torch.randn(2, 6, 16)
    with pytest.raises(NotImplementedError, match="forward-mode derivatives: expected none"):
        torch.func.jvp(CALLS[name], (x,), (x,))


@pytest.mark.parametrize("name", ONCE)
def test_a_second_derivative_is_refused(name: str) -> None:
    """Also where the upstream gradient needs none, and only the saved inputs lead back."""
    x = torch.randn(2, 6, 16, requires_grad=True)
    out = CALLS[name](x)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out), create_graph=True)
    with pytest.raises(RuntimeError, match="expected one differentiation, got a second"):
        torch.autograd.grad(gradient.square().sum() + F.mse_loss(x, x.detach()), x)


@pytest.mark.parametrize("name", ONCE)
def test_a_first_derivative_with_create_graph(name: str) -> None:
    x = torch.randn(2, 6, 16, requires_grad=True)
    plain, graph = (torch.autograd.grad(CALLS[name](x).sum(), x, create_graph=on)[0] for on in (False, True))
    assert torch.equal(plain, graph)
