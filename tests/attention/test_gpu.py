"""What only a GPU can show of `masked_attention`; test_triton.py runs its numerics there, too.

Three of the tests are for known faults of compilers on Hopper, which no test without a GPU can see:

* ptxas up to 12.9 may hand registers out again that a running product still reads as its left operand (the softmax's
  weights, dS): `test_products_from_registers_are_exact`. With ptxas 13.3 or newer (TRITON_PTXAS_PATH) it is fixed.
* Triton 3.7.1 read outside of shared memory where several products have a side of 32 and a block four warps:
  `test_heads_of_32_channels_and_many_programs`. The tiles of such heads have eight.
* Triton 3.4 and newer formed wrong dK from a transposed register tile, `tl.dot(tl.trans(ds), q)`: no kernel here has
  one, and `test_gradients_of_keys` holds every head size's dK to a bound that the fault passed by far.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from jepa_fast import BlockCausal, BlockSparse, Varlen, explain, masked_attention
from jepa_fast.bench.measure import peak_memory
from jepa_fast.kernels.attention import tiling

pytestmark = pytest.mark.gpu
Draw = Callable[..., Any]
Hold = Callable[[Any, str], Any]
HALF = (torch.bfloat16, torch.float16)
MASKS = ("none", "varlen", "block_causal", "block_sparse")
LENGTHS = [(47, 47), (112, 112), (250, 250), (300, 700), (1500, 1500)]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("rope", [None, "tiled"])
@pytest.mark.parametrize("head_dim", tiling.PUBLISHED_HEAD_DIMS)
@pytest.mark.parametrize("mask", ["none", "block_causal", "block_sparse"])
@pytest.mark.parametrize("dtype", HALF)
def test_budget(
    draw: Draw,
    hold: Hold,
    dtype: torch.dtype,
    mask: str,
    head_dim: int,
    rope: str | None,
    lengths: tuple[int, int],
) -> None:
    problem = draw(mask, head_dim, rope, dtype, lengths=lengths, block_size=(128, 128)).to("cuda")
    assert (
        explain("attention", problem.query, problem.key, problem.value, mask=problem.mask).chosen == "triton"
    )
    hold(problem, "triton")


@pytest.mark.parametrize("head_dim", tiling.HEAD_DIMS)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_every_head_dim(draw: Draw, hold: Hold, dtype: torch.dtype, head_dim: int) -> None:
    for mask in MASKS:
        hold(draw(mask, head_dim, dtype=dtype, block_size=(128, 128)).to("cuda"), "triton")


@pytest.mark.parametrize("head_dim", tiling.PUBLISHED_HEAD_DIMS)
@pytest.mark.parametrize("length", [64, 256, 1024, 4096])
@pytest.mark.parametrize("dtype", HALF)
def test_products_from_registers_are_exact(dtype: torch.dtype, length: int, head_dim: int) -> None:
    # Keys of zero weigh all values alike: weights of exactly 1 times integers below 8 are exact sums in float32, and
    # divided by a power of two they are what the mean in float64 rounds to. So is dV = p^T dO, a sum of p = 1 / length.
    shape = (8, length, 16, head_dim)
    generator = torch.Generator().manual_seed(head_dim)
    query, value, grad_out = (
        torch.randint(-7, 8, shape, generator=generator).to(dtype).cuda() for _ in range(3)
    )
    key = torch.zeros_like(query)
    for _ in range(5):  # it depended on what ran beside
        leaf = value.clone().requires_grad_()
        out = masked_attention(query, key, leaf, implementation="triton")
        (grad_value,) = torch.autograd.grad(out, leaf, grad_out)
        mean = value.double().mean(1, keepdim=True).to(dtype)
        assert torch.equal(out, mean.expand_as(out))
        mean_gradient = grad_out.double().mean(1, keepdim=True).to(dtype)
        assert torch.equal(grad_value, mean_gradient.expand_as(grad_value))


@pytest.mark.parametrize("head_dim", [24, 32, 88, 104])
@pytest.mark.parametrize("length", [33, 64, 128, 256, 300])
def test_heads_of_32_channels_and_many_programs(head_dim: int, length: int) -> None:
    query, key, value = (random(256, length, 16, head_dim, seed=seed).requires_grad_() for seed in range(3))
    out = masked_attention(query, key, value, implementation="triton")
    out.square().sum().backward()
    torch.cuda.synchronize()  # an illegal access shows here
    first = [x[:2].detach().requires_grad_() for x in (query, key, value)]
    again = masked_attention(*first, implementation="triton")
    again.square().sum().backward()
    assert torch.equal(out[:2], again)
    for x, few in zip((query, key, value), first, strict=True):
        assert torch.equal(x.grad[:2], few.grad)


@pytest.mark.parametrize("head_dim", tiling.PUBLISHED_HEAD_DIMS)
@pytest.mark.parametrize("length", [64, 200, 1000])
def test_gradients_of_keys(head_dim: int, length: int) -> None:
    query, key, value, grad_out = (random(2, length, 4, head_dim, seed=seed) for seed in range(4))
    results = []
    for implementation, dtype in (("triton", torch.bfloat16), ("reference", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in (query, key, value)]
        out = masked_attention(*leaves, implementation=implementation)
        results.append(torch.autograd.grad(out, leaves[1], grad_out.to(dtype))[0].double())
    found, true = results
    # Rounding p, dS and the result to 8 bits leaves about 2**-8 of a typical value; the fault left all of it.
    assert (found - true).norm() / true.norm() < 2**-6


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("lengths", [(100, 100), (400, 900)])
def test_deterministic(
    draw: Draw, gradients: Callable[..., tuple[torch.Tensor, ...]], mask: str, lengths: tuple[int, int]
) -> None:
    problem = draw(
        mask, 64, "tiled", torch.bfloat16, heads=(8, 2), lengths=lengths, block_size=(128, 128)
    ).to("cuda")
    first = gradients(problem, implementation="triton")
    for _ in range(10):
        again = gradients(problem, implementation="triton")
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("rope", [None, "tiled"])
@pytest.mark.parametrize("lengths", [(100, 100), (400, 400)])
def test_no_synchronisation(
    draw: Draw,
    gradients: Callable[..., tuple[torch.Tensor, ...]],
    mask: str,
    rope: str | None,
    lengths: tuple[int, int],
) -> None:
    problem = draw(mask, 64, rope, torch.bfloat16, lengths=lengths, block_size=(128, 128)).to("cuda")
    gradients(problem, implementation="triton")  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(problem, implementation="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_building_a_sparse_mask_does_not_synchronise() -> None:
    dense = torch.rand(500, 700, device="cuda") < 0.5
    BlockSparse.from_dense(dense)
    torch.cuda.set_sync_debug_mode("error")
    try:
        BlockSparse.from_dense(dense)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_current_stream() -> None:
    query, key, value = (random(2, 300, 4, 64, seed=seed) for seed in range(3))
    expected = masked_attention(query + 1, key, value)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # a kernel on another stream would overtake the addition
        query.add_(1)
        out = masked_attention(query, key, value)
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_captured_graph_reads_inputs_anew(packed: bool) -> None:
    def draw(seed: int) -> tuple[torch.Tensor, ...]:
        shape = (300, 4, 80) if packed else (2, 150, 4, 80)
        return tuple(random(*shape, seed=seed + side) for side in range(3))

    lengths = [(100, 200), (7, 293)]
    mask = Varlen.from_lengths(lengths[0], device="cuda") if packed else None
    mask = replace(mask, max_seqlen_q=300, max_seqlen_k=300) if mask is not None else None
    leaves = [x.requires_grad_() for x in draw(0)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, as PyTorch asks before a capture
        masked_attention(*leaves, mask=mask).sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = masked_attention(*leaves, mask=mask)
        found = torch.autograd.grad(out.sum(), leaves)
    for seed, other in ((10, lengths[0]), (20, lengths[1])):
        with torch.no_grad():
            for leaf, value in zip(leaves, draw(seed), strict=True):
                leaf.copy_(value)
            if mask is not None:
                fresh = Varlen.from_lengths(other, device="cuda")
                mask.cu_seqlens_q.copy_(fresh.cu_seqlens_q)
        graph.replay()
        expected = masked_attention(*leaves, mask=mask)
        assert torch.equal(out, expected)
        gradients = torch.autograd.grad(expected.sum(), leaves)
        assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))


def test_extra_memory_is_linear_in_the_length() -> None:
    query, key, value = (random(1, 8192, 8, 64, seed=seed).requires_grad_() for seed in range(3))

    def step() -> tuple[torch.Tensor, ...]:
        out = masked_attention(query, key, value, mask=BlockCausal(258))
        return torch.autograd.grad(out.sum(), (query, key, value))

    step()
    tensor = query.numel() * query.element_size()
    # out, grad_out (expanded, made dense), three gradients; log-sum-exp and delta are an eighth of a tensor together.
    assert peak_memory(step, "cuda") <= 6 * tensor
