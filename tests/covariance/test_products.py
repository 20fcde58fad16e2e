"""The products of the Gram form on the CPU: edges of the blocks, strides, threads, and torch in their place."""

import pytest
import torch
from torch import Tensor

from jepa_fast import barlow_twins_loss
from jepa_fast.kernels.covariance import forms, native
from jepa_fast.kernels.runtime import native as library

pytestmark = pytest.mark.native


@pytest.fixture(autouse=True)
def _wide_registers() -> None:
    if not native._has("square"):
        pytest.skip("this CPU has no AVX-512")


def bound(a: Tensor, b: Tensor) -> Tensor:
    """Of the error of float32 sums of products: twice what is likely by Higham and Mary (2019), u sqrt(n) |a| |b|."""
    return 2.0 * 2.0**-24 * a.shape[1] ** 0.5 * (a.abs().double() @ b.abs().double())


# Rows of a block are 6, columns 64, terms 128; three threads make tasks of 96 rows of the larger ones.
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("rows", "terms"), [(2, 1), (7, 5), (64, 16), (65, 513), (200, 1000), (331, 530)])
def test_symmetric(rows: int, terms: int, threads: int) -> None:
    x = torch.randn(rows, terms + 3)[:, :terms]  # rows apart
    start = torch.randn(rows, rows)
    start = start + start.T
    out = start.clone()
    library.function("covariance_add_square")(x, out, threads)
    expected = start.double() + x.double() @ x.double().T
    allowed = bound(x, x.T) + 2.0**-23 * start.abs()
    assert ((out - expected).abs() <= allowed).all()
    assert torch.equal(out, out.T)
    by_torch = start.clone()
    forms.add_square(x, by_torch)
    assert ((by_torch - expected).abs() <= allowed).all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("rows", "terms", "columns"), [(1, 1, 1), (6, 64, 64), (13, 700, 65), (300, 30, 47)])
def test_plain(rows: int, terms: int, columns: int, threads: int) -> None:
    a, b = torch.randn(rows, terms + 1)[:, :terms], torch.randn(terms, columns + 5)[:, :columns]
    out = torch.full((rows, columns + 2), torch.nan)[:, :columns]
    library.function("covariance_product")(a, b, out, threads)
    assert ((out - a.double() @ b.double()).abs() <= bound(a, b)).all()


def test_same_bits_whatever_the_threads() -> None:
    x, b = torch.randn(230, 1500), torch.randn(1500, 300)
    squares, products = [], []
    for threads in (1, 2, 5, 16):
        square, product = torch.zeros(230, 230), torch.empty(230, 300)
        library.function("covariance_add_square")(x, square, threads)
        library.function("covariance_product")(x, b, product, threads)
        squares.append(square)
        products.append(product)
    assert all(torch.equal(squares[0], other) for other in squares[1:])
    assert all(torch.equal(products[0], other) for other in products[1:])


def test_the_loss_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    views = torch.randn(2, 150, 400, generator=torch.Generator().manual_seed(0))
    found = []
    for there in (True, False):
        monkeypatch.setattr(native, "_has", lambda product, there=there: there)
        a, b = (view.clone().requires_grad_() for view in views)
        loss = barlow_twins_loss(a, b, implementation="native")
        loss.backward()
        found.append((loss.detach(), a.grad, b.grad))
    for with_them, without in zip(*found, strict=True):
        torch.testing.assert_close(with_them, without, rtol=1e-5, atol=1e-7)
