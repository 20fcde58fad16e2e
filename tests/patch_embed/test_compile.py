"""Patch embedding inside `torch.compile`, and its registrations."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from jepa_fast import masked_patch_embed, patchify


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])  # the last by the reference
@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8])
def test_one_graph_forward_and_backward(problem, pixels: torch.dtype, dtype: torch.dtype) -> None:
    p = problem(pixels=pixels, dtype=dtype, normalize=True)

    def step(pixels: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
        kept = masked_patch_embed(pixels, 2.0 * weight, bias, p.index, position=position, **p.statistics)
        rows = patchify(pixels, 8, dtype=dtype, **p.statistics)
        shared = masked_patch_embed(rows, weight, None)
        return torch.cat([kept.flatten(), shared.flatten()])

    leaves = [p.pixels if pixels == torch.uint8 else p.pixels.requires_grad_()]
    leaves += [x.requires_grad_() for x in p.leaves]
    counter = CompileCounterWithBackend("aot_eager")
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=counter)):
        out = function(*leaves)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        results.append(
            (out.detach(), *torch.autograd.grad(out, [x for x in leaves if x.requires_grad], upstream))
        )
    assert counter.frame_count == 1
    torch.testing.assert_close(results[1], results[0])


def test_under_autocast(problem) -> None:
    p = problem()
    compiled = torch.compile(masked_patch_embed, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compiled(p.pixels, p.weight, p.bias, p.index)
        expected = masked_patch_embed(p.pixels, p.weight, p.bias, p.index)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_bad_index_values_still_raise(problem) -> None:
    p = problem()
    p.index[0, 0] = 12
    compiled = torch.compile(masked_patch_embed, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"values in \[0, 12\), got 12 at \[0, 0\]"):
        compiled(p.pixels, p.weight, p.bias, p.index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(problem, dtype: torch.dtype) -> None:
    ops = torch.ops.jepa_fast
    p = problem(pixels=torch.uint8)
    statistics = list(p.statistics.get("mean", (0.5,) * 3)), [0.25] * 3
    form = (*statistics, dtype, "auto")
    leaves = [x.requires_grad_() for x in p.leaves]
    torch.library.opcheck(
        ops.patch_embed.default, (p.pixels, leaves[0], leaves[1], p.index, leaves[2], *form, torch.float32)
    )
    torch.library.opcheck(
        ops.patch_embed.default, (p.pixels, leaves[0], None, None, None, None, None, dtype, "auto", dtype)
    )
    grad = torch.randn(4, 5, 20)
    weight = p.weight.detach()
    for wanted in ([False, True, True, True], [False, True, False, False]):
        torch.library.opcheck(
            ops.patch_embed_backward.default, (grad, p.pixels, weight, p.index, *form, wanted, 12)
        )
    rows = patchify(p.pixels, 8, dtype=dtype)
    torch.library.opcheck(
        ops.patch_embed_backward.default,
        (grad, rows, weight, p.index, None, None, dtype, "auto", [True, False, False, False], 12),
    )
    pixels = torch.randn(2, 3, 24, 32, requires_grad=True)
    torch.library.opcheck(ops.patchify.default, (pixels, [8, 8], *form))
    torch.library.opcheck(
        ops.patchify_backward.default, (rows.float(), [2, 3, 24, 32], [8, 8], [0.25] * 3, dtype)
    )
