"""Residual add and LayerNorm at the widths of JEPA encoders and predictors, against the eager pair under autocast."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import jepa_fast
from jepa_fast.bench.baselines.layer_norm import add_layer_norm
from jepa_fast.bench.measure import Case, ErrorCheck, Trial, check_error
from jepa_fast.bench.suites.attention import dtype_name

# ViT-Ti and predictors, S, B, L, H, g and G
WIDTHS = (192, 384, 768, 1024, 1280, 1408, 1664)
VALUES_ON_A_CPU, VALUES_ON_A_GPU = 8192 * 384, 24 * 2048 * 1024
LOW, FULL = torch.bfloat16, torch.float32
# x, residual, normalized: a stream in low precision; the float32 stream of I-JEPA under autocast; no autocast.
STREAMS = ((LOW, LOW, LOW), (LOW, FULL, LOW), (FULL, FULL, FULL))
PASSES = ("fwd+bwd", "fwd", "bwd")

Leaves = tuple[Tensor, Tensor, Tensor, Tensor]


def cases() -> Iterator[Case]:
    for dtypes in STREAMS:
        yield _case(384, dtypes, "fwd+bwd", VALUES_ON_A_CPU)
    for width in WIDTHS:
        if width != 384:
            yield _case(width, STREAMS[0], "fwd+bwd", VALUES_ON_A_CPU, quick=False)
    for width in WIDTHS:
        for dtypes in STREAMS:
            for which in PASSES:
                yield _case(width, dtypes, which, VALUES_ON_A_GPU, quick=False, needs_cuda=True)


def _case(
    width: int,
    dtypes: Sequence[torch.dtype],
    which: str,
    values: int,
    *,
    quick: bool = True,
    needs_cuda: bool = False,
) -> Case:
    rows = values // width // 16 * 16
    stream, update = dtype_name(dtypes[1]), dtype_name(dtypes[0])
    return Case(
        op="add_layer_norm",
        shape=f"{which}, [{rows}, {width}]",
        dtype=stream if dtypes[0] == dtypes[1] else f"{stream} + {update}",
        build=partial(_build, (rows, width), tuple(dtypes), which),
        quick=quick,
        needs_cuda=needs_cuda,
    )


def _build(
    shape: tuple[int, int], dtypes: tuple[torch.dtype, ...], which: str, device: torch.device
) -> Trial:
    leaves, upstream = tensors(shape, dtypes, device)
    baselines: dict[str, Callable[[], object]] = {"eager": _call(which, eager, leaves, upstream)}
    if device.type == "cuda":  # on a CPU its compilation takes longer than the comparison
        compiled = torch.compile(add_layer_norm, fullgraph=True)
        baselines["torch.compile"] = _call(which, partial(eager, function=compiled), leaves, upstream)
        if which != "fwd+bwd":
            # What moving the same bytes takes: the share of it that we reach is the inverse of the row's ratio.
            source = torch.randn(_bytes(shape, dtypes, which) // 8, device=device)
            baselines["copy of as many bytes"] = partial(torch.empty_like(source).copy_, source)
    return Trial(
        ours=_call(which, ours, leaves, upstream),
        check=partial(check, leaves, upstream),
        implementation=jepa_fast.explain("layer_norm", *leaves, dtype=dtypes[2]).chosen,
        baselines=baselines,
        bytes=_bytes(shape, dtypes, which),
    )


def _bytes(shape: tuple[int, int], dtypes: tuple[torch.dtype, ...], which: str) -> int:
    """Read and written. Forward: x, residual, new_residual and normalized. Backward: both gradients, new_residual, the
    gradient of the stream and, if it is of another dtype, that of x."""
    if which == "fwd+bwd":
        return _bytes(shape, dtypes, "fwd") + _bytes(shape, dtypes, "bwd")
    x, residual, normalized = (dtype.itemsize for dtype in dtypes)
    each = x + 2 * residual + normalized if which == "fwd" else normalized + 3 * residual
    if which == "bwd" and x != residual:
        each += x
    return shape[0] * shape[1] * each


def tensors(
    shape: tuple[int, int], dtypes: Sequence[torch.dtype], device: torch.device
) -> tuple[Leaves, list[Tensor]]:
    """(x, residual, weight, bias), and gradients of normalized and of new_residual."""
    random = torch.Generator().manual_seed(0)
    x, residual, *upstream = (torch.randn(shape, generator=random) for _ in range(4))
    weight = 1.0 + 0.1 * torch.randn(shape[1], generator=random)
    bias = 0.1 * torch.randn(shape[1], generator=random)
    leaves = (x.to(device, dtypes[0]), residual.to(device, dtypes[1]), weight.to(device), bias.to(device))
    for leaf in leaves:
        leaf.requires_grad_()
    return leaves, [upstream[0].to(device, dtypes[2]), upstream[1].to(device, dtypes[1])]


def _call(
    which: str, function: Callable[..., tuple[Tensor, Tensor]], leaves: Leaves, upstream: list[Tensor]
) -> Callable[[], object]:
    dtype = upstream[0].dtype
    if which == "fwd":
        return partial(function, *leaves, dtype=dtype)
    if which == "bwd":
        outputs = function(*leaves, dtype=dtype)
        return partial(torch.autograd.grad, outputs, leaves, upstream, retain_graph=True)
    return partial(both_passes, function, leaves, upstream)


def both_passes(
    function: Callable[..., tuple[Tensor, Tensor]], leaves: Leaves, upstream: list[Tensor]
) -> tuple[Tensor, ...]:
    outputs = function(*leaves, dtype=upstream[0].dtype)
    return *outputs, *torch.autograd.grad(outputs, leaves, upstream)


def ours(*leaves: Tensor, dtype: torch.dtype, implementation: str = "auto") -> tuple[Tensor, Tensor]:
    return jepa_fast.add_layer_norm(*leaves, dtype=dtype, implementation=implementation)


def eager(
    *leaves: Tensor, dtype: torch.dtype, function: Callable[..., tuple[Tensor, Tensor]] = add_layer_norm
) -> tuple[Tensor, Tensor]:
    return function(*leaves, dtype)


def check(leaves: Leaves, upstream: list[Tensor]) -> ErrorCheck:
    """Both against the reference in float64: outputs and every gradient."""
    x, residual, weight, bias = (leaf.detach().double().requires_grad_() for leaf in leaves)
    reference = partial(ours, implementation="reference")
    oracle = both_passes(reference, (x, residual, weight, bias), [g.double() for g in upstream])
    return check_error(both_passes(ours, leaves, upstream), both_passes(eager, leaves, upstream), oracle)
