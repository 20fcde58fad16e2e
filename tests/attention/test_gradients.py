"""The reference's gradients by finite differences, and what autograd may do with the op."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import BlockCausal, BlockSparse, Rope3D, Varlen, masked_attention
from jepa_fast.kernels.attention.masks import Mask

IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "reference"]


def any_mask() -> BlockSparse:
    dense = torch.rand(2, 2, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    dense[:, :, 2] = False
    return BlockSparse.from_dense(dense)


@pytest.mark.parametrize("pairing", [None, "tiled", "interleaved"])
@pytest.mark.parametrize(
    "mask",
    [
        None,
        BlockCausal(2, 1),
        any_mask(),
        Varlen.from_lengths([2, 0, 3], [1, 2, 3]),
        Varlen.from_lengths([2, 0, 3], [1, 2, 3], causal=True),
    ],
    ids=["none", "block_causal", "block_sparse", "varlen", "varlen_causal"],
)
def test_gradcheck(mask: Mask | None, pairing: str | None) -> None:
    random = torch.Generator().manual_seed(1)
    samples = () if isinstance(mask, Varlen) else (2,)

    def draw(tokens: int, heads: int) -> Tensor:
        shape = (*samples, tokens, heads, 8)
        return torch.randn(shape, dtype=torch.float64, generator=random, requires_grad=True)

    rope = None
    if pairing is not None:
        rope = tuple(Rope3D(8 * torch.rand(n, 3, generator=random), pairing=pairing) for n in (5, 6))
    assert torch.autograd.gradcheck(
        lambda q, k, v: masked_attention(q, k, v, mask=mask, rope=rope), (draw(5, 2), draw(6, 1), draw(6, 1))
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_only_some_inputs_require_gradients(draw: Callable[..., Any], implementation: str) -> None:
    problem = draw()
    arguments = [problem.query, problem.key, problem.value]
    expected = None
    for chosen in ((0, 1, 2), (0,), (1,), (2,)):
        leaves = [x.detach().requires_grad_(i in chosen) for i, x in enumerate(arguments)]
        masked_attention(*leaves, implementation=implementation).backward(problem.grad_out)
        expected = expected or [x.grad for x in leaves]
        for i, x in enumerate(leaves):
            assert (x.grad is not None) == (i in chosen)
            if i in chosen:
                assert torch.equal(x.grad, expected[i])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_tensor_three_times(draw: Callable[..., Any], implementation: str) -> None:
    x = draw(heads=(2, 2), lengths=(20, 20)).query
    whole = x.clone().requires_grad_()
    masked_attention(whole, whole, whole, implementation=implementation).sum().backward()
    parts = [x.clone().requires_grad_() for _ in range(3)]
    masked_attention(*parts, implementation=implementation).sum().backward()
    torch.testing.assert_close(whole.grad, sum(part.grad for part in parts))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_second_backward(draw: Callable[..., Any], implementation: str) -> None:
    problem = draw("block_causal", 32, "tiled")
    leaf = problem.query.requires_grad_()
    out = masked_attention(
        leaf, problem.key, problem.value, mask=problem.mask, rope=problem.ropes, implementation=implementation
    )
    first, second = (torch.autograd.grad(out, leaf, problem.grad_out, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    upstream = problem.grad_out.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="masked_attention: expected one differentiation"):
        torch.autograd.grad(out, leaf, upstream, create_graph=True)[0].sum().backward()
