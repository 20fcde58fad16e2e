"""The layers with a backward of their own, against plain PyTorch and numerical gradients."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.nn.attention import Attention
from jepa_fast.nn.block import MLP, Block, Blocks
from jepa_fast.nn.fused import Fused, set_fused
from jepa_fast.nn.layers import LayerNorm, Linear
from jepa_fast.nn.vision_transformer import PatchEmbed

Module = TypeVar("Module", bound=nn.Module)


def randomized(module: Module) -> Module:
    """In float64, with random biases; freshly drawn they are zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.double().parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    return module


def inputs(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)


def assert_same(module: nn.Module, formula: Callable[[Tensor], Tensor], x: Tensor, **options: Any) -> None:
    """Values with and without autograd, and every gradient, for one random gradient of the output."""
    got, expected = module(x, **options), formula(x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(module(x, **options), expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    variables = [x, *module.parameters()]
    ours, theirs = (torch.autograd.grad(output, variables, grad) for output in (got, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def dense(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.t() + layer.bias


def manual_attention(module: Attention, x: Tensor, num_queries: int) -> Tensor:
    batch, tokens, dim = x.shape
    heads = module.num_heads
    qkv = dense(module.qkv, x).view(batch, tokens, 3, heads, dim // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    score = query[:, :, tokens - num_queries :] @ key.transpose(-2, -1) / (dim // heads) ** 0.5
    out = (score.softmax(-1) @ value).transpose(1, 2).reshape(batch, num_queries, dim)
    return dense(module.proj, out)


def manual_mlp(module: MLP, x: Tensor) -> Tensor:
    hidden = dense(module.fc1, x)
    return dense(module.fc2, hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))


def test_linear() -> None:
    module = randomized(Linear(5, 7))
    assert_same(module, lambda x: dense(module, x), inputs(2, 3, 5))


@pytest.mark.parametrize("num_queries", [1, 4, 9])
@pytest.mark.parametrize("head_dim", [3, 24, 88])
def test_attention_is_manual_softmax(head_dim: int, num_queries: int) -> None:
    module = randomized(Attention(2 * head_dim, 2))
    x = inputs(3, 9, 2 * head_dim)
    assert_same(module, lambda x: manual_attention(module, x, num_queries), x, num_queries=num_queries)


def test_mlp() -> None:
    module = randomized(MLP(6, 10))
    assert_same(module, lambda x: manual_mlp(module, x), inputs(2, 3, 6))


class Transformer(nn.Module):
    """Blocks and the LayerNorm behind them."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, depth: int) -> None:
        super().__init__()
        self.blocks = Blocks(Block(dim, num_heads, mlp_dim) for _ in range(depth))
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor, num_outputs: int | None = None) -> Tensor:
        return self.blocks(x, self.norm, num_outputs, dtype=x.dtype)


@pytest.mark.parametrize("fused", [Fused(), Fused.none()], ids=["fused", "plain"])
@pytest.mark.parametrize("num_outputs", [3, 7])
@pytest.mark.parametrize("depth", [1, 2])
def test_blocks(depth: int, num_outputs: int, fused: Fused) -> None:
    module = randomized(Transformer(8, 2, 12, depth))
    set_fused(module, fused)

    def normalize(x: Tensor, norm: LayerNorm) -> Tensor:
        return F.layer_norm(x, (8,), norm.weight, norm.bias, 1e-6)

    def formula(x: Tensor) -> Tensor:
        for block in module.blocks:
            x = x + manual_attention(block.attn, normalize(x, block.norm1), 7)
            x = x + manual_mlp(block.mlp, normalize(x, block.norm2))
        return normalize(x, module.norm)[:, 7 - num_outputs :]

    assert_same(module, formula, inputs(2, 7, 8), num_outputs=num_outputs)


@pytest.mark.parametrize("fused", [Fused(), Fused.none()], ids=["fused", "plain"])
def test_patch_embedding_is_the_convolution(fused: Fused) -> None:
    module = randomized(PatchEmbed(4, 6))
    set_fused(module, fused)
    pixels, position = inputs(2, 3, 12, 8), inputs(6, 6)
    every = nn.functional.conv2d(pixels, module.proj.weight, module.proj.bias, stride=4).flatten(2).mT
    index = torch.tensor([[0, 5], [3, 1], [2, 4], [1, 0]])  # two masks of two images
    kept = torch.stack([(every + position)[row % 2, kept] for row, kept in enumerate(index)])
    for given in (pixels, module.patchify(pixels)):
        torch.testing.assert_close(module(given, position), every + position, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(module(given, position, index), kept, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_decides_the_dtype_of_products(enabled: bool) -> None:
    block, linear = Transformer(64, 2, 128, depth=1), Linear(64, 32)
    x = torch.randn(2, 5, 64, requires_grad=True)
    seen: list[torch.dtype] = []
    for layer in (block.blocks[0].attn.qkv, linear):
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        out = block(x)
        product = linear(out)
    product.float().sum().backward()
    assert out.dtype == torch.float32
    assert seen == [torch.bfloat16 if enabled else torch.float32] * 2
    for tensor in (x, *block.parameters(), *linear.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32


def test_bfloat16_without_gradients_matches_training() -> None:
    """Without gradients attention and MLP take another path."""
    block = Transformer(64, 2, 128, depth=1)
    x = torch.randn(2, 5, 64)
    exact = copy.deepcopy(block).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        training = block(x)
        with torch.no_grad():
            inference = block(x)
    errors = [(output.double() - exact).norm().item() for output in (training, inference)]
    assert 0 < max(errors) < 2 * min(errors)
