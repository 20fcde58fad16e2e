"""VICReg and Barlow Twins, forward and backward, against the published order of work with its D x D matrices."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import jepa_fast
from jepa_fast.bench.baselines import covariance as published
from jepa_fast.bench.measure import Case, ErrorCheck, Trial, check_error

# N < D takes the Gram form, N >= D the tiled one.
GRAM, WIDE, TILED = (512, 4096), (256, 8192), (4096, 512)
LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "vicreg_loss": (jepa_fast.vicreg_loss, published.vicreg_loss),
    "barlow_twins_loss": (jepa_fast.barlow_twins_loss, published.barlow_twins_loss),
}


def cases() -> Iterator[Case]:
    yield _case("vicreg_loss", (128, 1024), torch.float32, quick=True)
    yield _case("barlow_twins_loss", (128, 1024), torch.float32, quick=True)
    yield _case("vicreg_loss", (1024, 128), torch.float32, quick=True)
    for name in LOSSES:
        for shape in (GRAM, WIDE, TILED):
            yield _case(name, shape, torch.float32)
    yield _case("vicreg_loss", WIDE, torch.bfloat16, needs_cuda=True)
    yield _case("vicreg_loss", (2048, 8192), torch.float32, needs_cuda=True)
    yield _case("vicreg_loss", (2048, 8192), torch.bfloat16, needs_cuda=True)
    yield _case("barlow_twins_loss", (2048, 8192), torch.bfloat16, needs_cuda=True)


def _case(
    name: str, shape: tuple[int, int], dtype: torch.dtype, *, quick: bool = False, needs_cuda: bool = False
) -> Case:
    return Case(
        op=name,
        shape=f"fwd+bwd, N={shape[0]} D={shape[1]}",
        dtype=str(dtype).removeprefix("torch."),
        build=partial(_build, name, shape, dtype),
        quick=quick,
        needs_cuda=needs_cuda,
    )


def _build(name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Trial:
    views = tensors(shape, dtype, device)
    ours, eager = LOSSES[name]
    baselines = {"published eager": partial(with_gradients, eager, views)}
    if device.type == "cuda":
        baselines["torch.compile"] = partial(with_gradients, torch.compile(eager, fullgraph=True), views)
    return Trial(
        ours=partial(with_gradients, ours, views),
        check=partial(check, name, views),
        implementation=jepa_fast.explain(name, *views).chosen,
        baselines=baselines,
        bytes=4 * views[0].nbytes,  # two views and their gradients
        # Of each view half of a symmetric product, and its product with the view: N D min(N, D) and twice that.
        flops=6 * shape[0] * shape[1] * min(shape),
    )


def tensors(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two views near each other, [N, D], with gradients."""
    random = torch.Generator().manual_seed(0)
    first = torch.randn(shape, generator=random)
    second = first + 0.5 * torch.randn(shape, generator=random)
    return first.to(device, dtype).requires_grad_(), second.to(device, dtype).requires_grad_()


def with_gradients(loss: Callable[..., Tensor], views: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The loss and the gradient of each view."""
    value = loss(*views)
    return (value, *torch.autograd.grad(value, views))


def check(name: str, views: tuple[Tensor, Tensor]) -> ErrorCheck:
    """Both against the reference in float64, loss and gradients."""
    ours, eager = LOSSES[name]
    exact = tuple(view.detach().double().requires_grad_() for view in views)
    oracle = with_gradients(partial(ours, implementation="reference"), exact)
    theirs, *gradients = with_gradients(eager, views)
    return check_error(with_gradients(ours, views), (theirs.float(), *gradients), oracle)
