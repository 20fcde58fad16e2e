"""The MLP of a transformer block, forward and backward, at I-JEPA's shapes, against the eager layers under autocast."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import jepa_fast
from jepa_fast.bench.baselines import gelu_mlp as published
from jepa_fast.bench.measure import Case, ErrorCheck, Trial, check_error
from jepa_fast.bench.suites.attention import dtype_name

# name, rows, width; the hidden layer is four times as wide
ON_A_CPU = (("ViT-S/8 context", 16 * 100, 384), ("ViT-S/8 target", 16 * 256, 384))
ON_A_GPU = (("ViT-H/14 target", 128 * 256, 1280), ("ViT-g clip", 24 * 2048, 1408))

Leaves = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def cases() -> Iterator[Case]:
    for name, rows, width in ON_A_CPU:
        for dtype in (torch.bfloat16, torch.float32):
            for recompute in (False, True):
                quick = rows == ON_A_CPU[0][1] and not recompute and dtype == torch.bfloat16
                yield _case(name, (rows, width), dtype, recompute, quick=quick)
    for name, rows, width in ON_A_GPU:
        for recompute in (False, True):
            yield _case(name, (rows, width), torch.bfloat16, recompute, quick=False, needs_cuda=True)


def _case(
    name: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    recompute: bool,
    *,
    quick: bool,
    needs_cuda: bool = False,
) -> Case:
    return Case(
        op="gelu_mlp",
        shape=f"{name} fwd+bwd, {list(shape)}" + (", recompute" if recompute else ""),
        dtype=dtype_name(dtype),
        build=partial(_build, shape, dtype, recompute),
        quick=quick,
        needs_cuda=needs_cuda,
        by_products=True,
    )


def _build(shape: tuple[int, int], dtype: torch.dtype, recompute: bool, device: torch.device) -> Trial:
    leaves, upstream = tensors(shape, dtype, device)
    baselines = {"eager": partial(eager, leaves, upstream)}
    if device.type == "cuda":
        compiled = torch.compile(published.gelu_mlp, fullgraph=True)
        baselines["torch.compile"] = partial(eager, leaves, upstream, compiled)
    return Trial(
        ours=partial(ours, leaves, upstream, recompute),
        check=partial(check, leaves, upstream, recompute),
        implementation=jepa_fast.explain("gelu_mlp", *leaves).chosen,
        baselines=baselines,
        flops=3
        * 2
        * 2
        * shape[0]
        * shape[1]
        * 4
        * shape[1],  # two products, each once forward and twice backward
    )


def tensors(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> tuple[Leaves, Tensor]:
    """(x, w1, b1, w2, b2) and the gradient of the output; x in `dtype`, parameters in float32."""
    random = torch.Generator().manual_seed(0)
    width = shape[1]
    x, upstream = (torch.randn(shape, generator=random).to(device, dtype) for _ in range(2))
    shapes = ((4 * width, width), (4 * width,), (width, 4 * width), (width,))
    w1, b1, w2, b2 = (
        (torch.randn(size, generator=random) * width**-0.5).to(device).requires_grad_() for size in shapes
    )
    return (x.requires_grad_(), w1, b1, w2, b2), upstream


def ours(
    leaves: Leaves, upstream: Tensor, recompute: bool, implementation: str = "auto"
) -> tuple[Tensor, ...]:
    with torch.autocast(upstream.device.type, torch.bfloat16, enabled=upstream.dtype == torch.bfloat16):
        output = jepa_fast.gelu_mlp(*leaves, recompute=recompute, implementation=implementation)
    return output, *torch.autograd.grad(output, leaves, upstream)


def eager(
    leaves: Leaves, upstream: Tensor, function: Callable[..., Tensor] = published.gelu_mlp
) -> tuple[Tensor, ...]:
    output = function(*leaves, upstream.dtype)
    return output, *torch.autograd.grad(output, leaves, upstream)


def check(leaves: Leaves, upstream: Tensor, recompute: bool) -> ErrorCheck:
    """Both against the reference in float64: output and every gradient."""
    x, w1, b1, w2, b2 = (leaf.detach().double().requires_grad_() for leaf in leaves)
    oracle = ours((x, w1, b1, w2, b2), upstream.double(), False, implementation="reference")
    return check_error(ours(leaves, upstream, recompute), eager(leaves, upstream), oracle)
