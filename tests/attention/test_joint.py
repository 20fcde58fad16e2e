"""Query, key and value as parts of one tensor: the same gradients, put together without a copy where they can be."""

import pytest
import torch

from jepa_fast import Varlen, masked_attention
from jepa_fast.kernels.attention.joint import are_parts, parts_of


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("leading", [(2, 9), (14,)], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_are_those_of_unbind(parts: int, leading: tuple[int, ...], dtype: torch.dtype) -> None:
    joint = torch.randn(*leading, parts, 3, 8).to(dtype)
    query = torch.randn(*leading, 3, 8).to(dtype)
    mask = Varlen.from_lengths([5, 9]) if len(leading) == 1 else None
    found = []
    for split in (parts_of, lambda x: x.unbind(-3)):
        leaf = joint.clone().requires_grad_()
        own = query.clone().requires_grad_()
        tensors = split(leaf) if parts == 3 else (own, *split(leaf))
        out = masked_attention(*tensors, mask=mask)
        torch.manual_seed(1)
        out.backward(torch.randn(out.shape).to(dtype))
        found.append((out, leaf.grad, own.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


@pytest.mark.native
def test_native_gradients_lie_side_by_side() -> None:
    joint = torch.randn(2, 9, 3, 2, 8)
    query, key, value = (x.requires_grad_() for x in joint.unbind(-3))
    out = masked_attention(query, key, value, implementation="native")
    assert are_parts(*torch.autograd.grad(out, (query, key, value), out))
    apart = [x.detach().clone().requires_grad_() for x in (query, key, value)]
    out = masked_attention(*apart, implementation="native")
    grads = torch.autograd.grad(out, apart, out)
    assert all(grad.is_contiguous() for grad in grads)


def test_what_are_parts() -> None:
    joint = torch.zeros(2, 9, 3, 2, 8)
    assert are_parts(*joint.unbind(-3))
    assert not are_parts(*joint.unbind(-3)[:2])
    assert not are_parts(*reversed(joint.unbind(-3)))
    assert not are_parts(*joint[:, ::2].unbind(-3))
    assert not are_parts(*joint[:, :5].unbind(-3))
    assert not are_parts(*(x.clone() for x in joint.unbind(-3)))
    assert not are_parts(*joint.transpose(-1, -2).unbind(-3))


def test_gradients_from_elsewhere_are_stacked() -> None:
    joint = torch.randn(4, 3, 2, 8, requires_grad=True)
    first, second, _ = parts_of(joint)
    (first * 2 + second).sum().backward()
    assert joint.grad is not None
    assert joint.grad.unbind(-3)[0].eq(2).all()
    assert joint.grad.unbind(-3)[1].eq(1).all()
    assert joint.grad.unbind(-3)[2].eq(0).all()
