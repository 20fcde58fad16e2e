from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast import gelu_mlp

Parameters = list[Tensor]


def _draw(
    *rows: int, sizes: tuple[int, int, int] = (12, 40, 10), dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    width, hidden, out = sizes

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = [normal(*rows, width), normal(hidden, width) / 2, normal(hidden), normal(out, hidden) / 4]
    return [t.to(dtype) for t in (*tensors, normal(out))], (0.5 + normal(*rows, out)).to(dtype)


@pytest.fixture
def draw() -> Callable[..., tuple[list[Tensor], Tensor]]:
    """Makes ([x, w1, b1, w2, b2], gradient of the output)."""
    return _draw


def _published(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


@pytest.fixture
def published() -> Callable[..., Tensor]:
    return _published


def _with_gradients(function: Callable[..., Tensor], tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream.to(output.dtype))]


@pytest.fixture
def with_gradients() -> Callable[..., list[Tensor]]:
    """[output, gradients of x, w1, b1, w2 and b2] of a function of those."""
    return _with_gradients


@pytest.fixture
def oracle(with_gradients: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """The reference in float64, itself held against PyTorch's own functions in test_semantics.py."""

    def run(tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
        return with_gradients(gelu_mlp, [tensor.double() for tensor in tensors], upstream.double())

    return run
