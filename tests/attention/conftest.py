"""Problems of every mask and rotary form, and what is held against each other on them.

An implementation is a parameter everywhere, so that the tests of one are the tests of all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import BlockCausal, BlockSparse, Rope3D, Varlen, masked_attention
from jepa_fast.bench.baselines.attention import vjepa2_rotary
from jepa_fast.bench.measure import ErrorCheck, check_error
from jepa_fast.kernels.attention.masks import Mask

VANISHING = 1e-12
LENGTHS_Q, LENGTHS_K = (3, 0, 17, 40, 1), (5, 2, 0, 33, 1)


@dataclass(frozen=True)
class Problem:
    """Arguments of a call, and the gradient that comes back to it."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor
    mask: Mask | None
    ropes: tuple[Rope3D, Rope3D] | None

    def to(self, target: torch.dtype | str) -> "Problem":
        """With the tensors in another dtype, or all of it on another device."""
        names = ("query", "key", "value", "grad_out")
        moved = replace(self, **{name: getattr(self, name).to(target) for name in names})
        if isinstance(target, torch.dtype):
            return moved
        if self.mask is not None:
            tensors = [x.to(target) for x in self.mask.tensors()]
            moved = replace(moved, mask=self.mask.rebuild(tensors, self.mask.integers()))
        if self.ropes is not None:
            query, key = (replace(rope, positions=rope.positions.to(target)) for rope in self.ropes)
            moved = replace(moved, ropes=(query, key))
        return moved

    def visible(self) -> Tensor | None:
        """The mask as bool, to broadcast to `[B, Hq, Nq, Nk]`."""
        if self.mask is None:
            return None
        return self.mask.dense(self.query.shape[-3], self.key.shape[-3], self.query.device)


def _draw(
    mask: str = "none",
    head_dim: int = 32,
    rope: str | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    heads: tuple[int, int] = (4, 2),
    lengths: tuple[int, int] = (53, 70),
    samples: int = 2,
    block_size: tuple[int, int] = (32, 32),
    seed: int = 0,
) -> Problem:
    """heads, lengths: of queries and of keys. A sparse mask has full, partial and empty blocks, and empty rows."""
    random = torch.Generator().manual_seed(seed)
    packed = mask.startswith("varlen")
    tokens = (
        ((sum(LENGTHS_Q),), (sum(LENGTHS_K),)) if packed else tuple((samples, length) for length in lengths)
    )
    query, key, value, grad_out = (
        torch.randn(*tokens[side], heads[side], head_dim, generator=random).to(dtype) for side in (0, 1, 1, 0)
    )
    ropes = None
    if rope is not None:
        # Fractional ones for queries of every sample; one table for the keys of all samples.
        positions = [16 * torch.rand(*tokens[0], 3, generator=random)]
        positions.append(torch.randint(16, (tokens[1][-1], 3), generator=random))
        ropes = (Rope3D(positions[0], pairing=rope), Rope3D(positions[1], pairing=rope))
    masks: dict[str, Callable[[], Mask | None]] = {
        "none": lambda: None,
        "varlen": lambda: Varlen.from_lengths(LENGTHS_Q, LENGTHS_K),
        "varlen_causal": lambda: Varlen.from_lengths(LENGTHS_Q, LENGTHS_K, causal=True),
        "block_causal": lambda: BlockCausal(9, query_offset=lengths[1] - lengths[0]),
        "block_sparse": lambda: BlockSparse.from_dense(
            _any_mask((samples, heads[0], *lengths), block_size, random), block_size
        ),
    }
    return Problem(query, key, value, grad_out, masks[mask](), ropes)


def _any_mask(shape: tuple[int, ...], block_size: tuple[int, int], random: torch.Generator) -> Tensor:
    block_q, block_k = block_size
    mask = torch.rand(shape, generator=random) < 0.4
    mask[..., :block_q, :block_k] = True
    mask[..., :block_q, block_k : 2 * block_k] = False
    mask[..., -3:-2, :] = False
    mask[0, 0, block_q:] = False
    mask[..., -1, :] = True
    return mask


@pytest.fixture
def draw() -> Callable[..., Problem]:
    return _draw


def _gradients(problem: Problem, **options: Any) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (problem.query, problem.key, problem.value)]
    out = masked_attention(*leaves, mask=problem.mask, rope=problem.ropes, **options)
    return out.detach(), *torch.autograd.grad(out, leaves, problem.grad_out)


@pytest.fixture
def gradients() -> Callable[..., tuple[Tensor, ...]]:
    """(out, dq, dk, dv) of `masked_attention`, the options passed on."""
    return _gradients


def _oracle(problem: Problem, **options: Any) -> tuple[Tensor, ...]:
    dtype = problem.query.dtype
    if problem.ropes is not None:
        problem = replace(problem, ropes=tuple(replace(rope, dtype=dtype) for rope in problem.ropes))
    return _gradients(problem.to(torch.float64), implementation="reference", **options)


@pytest.fixture
def oracle() -> Callable[..., tuple[Tensor, ...]]:
    """The reference in float64, with the tables of the problem's dtype."""
    return _oracle


def _eager(problem: Problem, scale: float | None = None) -> tuple[Tensor, ...]:
    """As published code writes it, in the dtype given: rotations in that dtype, a dense mask, SDPA."""
    leaves = [x.detach().requires_grad_() for x in (problem.query, problem.key, problem.value)]
    by_head = [x.transpose(-2, -3)[(None,) * (4 - x.ndim)] for x in leaves]
    if problem.ropes is not None:
        for side, rope in enumerate(problem.ropes):
            positions = rope.positions.to(torch.float32)[..., None, :, :].unbind(-1)
            positions = [p.to(by_head[side].dtype) for p in positions]
            by_head[side] = vjepa2_rotary(by_head[side], positions, interleaved=rope.pairing == "interleaved")
    visible = problem.visible()
    out = torch.nn.functional.scaled_dot_product_attention(
        *by_head, attn_mask=visible, scale=scale, enable_gqa=True
    )
    if visible is not None:
        out = out.masked_fill(~visible.any(-1, keepdim=True), 0.0)
    out = out.transpose(-2, -3).reshape(problem.query.shape)
    found = torch.autograd.grad(out, leaves, problem.grad_out)
    return out.detach(), *(gradient.nan_to_num(0.0) for gradient in found)


@pytest.fixture
def eager() -> Callable[..., tuple[Tensor, ...]]:
    return _eager


def _hold(problem: Problem, implementation: str) -> ErrorCheck:
    outputs = zip(
        _gradients(problem, implementation=implementation), _eager(problem), _oracle(problem), strict=True
    )
    # Over one key the softmax is 1 whatever the score, and the gradients of query and key are rounding alone.
    measured, vanishing = [], []
    for triple in outputs:
        (vanishing if triple[2].abs().max() < VANISHING else measured).append(triple)
    result = check_error(*zip(*measured, strict=True))
    assert result.passed, result.reason
    for ours, theirs, _ in vanishing:
        assert ours.abs().max() <= 2 * theirs.abs().max() + 64 * torch.finfo(ours.dtype).eps
    return result


@pytest.fixture
def hold() -> Callable[[Problem, str], ErrorCheck]:
    """Holds an implementation's output and gradients to the budget: twice eager's error plus a few ulps."""
    return _hold
