"""SIGReg forward and backward at LeJEPA's shapes, against the published order and its compiled form."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import jepa_fast
from jepa_fast.bench.baselines.sigreg import sigreg, unit_directions
from jepa_fast.bench.measure import Case, ErrorCheck, Trial, check_error

SEED = 3
Pair = tuple[Tensor, Tensor]


def cases() -> Iterator[Case]:
    # Projectors of LeJEPA end in 512 features in the paper, in 16 in the minimal recipe; 128 lies between.
    yield _case(2048, 128)
    for features in (512, 16):
        yield _case(2048, features, quick=False)
    for knots in (5, 33):  # with the first case: cost over the number of knots
        yield _case(2048, 128, knots=knots, quick=False)
    # On the CPU the published form takes 4 GB and half a minute.
    for features in (128, 512):
        for dtype in (torch.float32, torch.bfloat16):
            yield _case(8192, features, dtype=dtype, quick=False, needs_cuda=True)


def _case(
    samples: int,
    features: int,
    *,
    slices: int = 1024,
    knots: int = 17,
    dtype: torch.dtype = torch.float32,
    quick: bool = True,
    needs_cuda: bool = False,
) -> Case:
    return Case(
        op="sigreg_loss",
        shape=f"fwd+bwd, N={samples} D={features} M={slices} knots={knots}",
        dtype=str(dtype).removeprefix("torch."),
        build=partial(_build, samples, features, slices, knots, dtype),
        quick=quick,
        needs_cuda=needs_cuda,
    )


def _build(
    samples: int, features: int, slices: int, knots: int, dtype: torch.dtype, device: torch.device
) -> Trial:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(samples, features, generator=random).to(device, dtype).requires_grad_()
    options = {"num_slices": slices, "num_knots": knots}
    baselines: dict[str, Callable[[], Pair]] = {"LeJEPA eager": partial(eager, x, sigreg, **options)}
    if _can_compile(device):
        baselines["torch.compile"] = partial(eager, x, torch.compile(sigreg), **options)
    return Trial(
        ours=partial(ours, x, **options),
        check=partial(check, x, **options),
        implementation=jepa_fast.explain("sigreg", x, num_slices=slices, num_knots=knots).chosen,
        baselines=baselines,
        bytes=3 * x.nbytes,  # x twice, its gradient once; the directions are drawn, not read
        flops=4
        * samples
        * features
        * slices,  # the projection and its transpose; cosines and sines not counted
    )


def ours(x: Tensor, *, num_slices: int, num_knots: int) -> Pair:
    """Loss and gradient by the op, directions drawn anew."""
    loss = jepa_fast.sigreg_loss(x, num_slices=num_slices, num_knots=num_knots, seed=SEED)
    return loss, torch.autograd.grad(loss, x)[0]


def eager(x: Tensor, loss_of: Callable[..., Tensor], *, num_slices: int, num_knots: int) -> Pair:
    """Loss and gradient by the published formulation, directions drawn anew."""
    directions = unit_directions(x.shape[-1], num_slices, SEED, x.device)
    loss = _published(x, directions, num_knots, loss_of)
    return loss, torch.autograd.grad(loss, x)[0]


def _published(
    x: Tensor, directions: Tensor, num_knots: int, loss_of: Callable[..., Tensor] = sigreg
) -> Tensor:
    """Half precision runs as it does in training, under autocast."""
    if x.dtype == torch.float32:
        return loss_of(x, directions, num_knots=num_knots)
    with torch.autocast(x.device.type, dtype=x.dtype):
        return loss_of(x, directions, num_knots=num_knots)


def check(x: Tensor, *, num_slices: int, num_knots: int) -> ErrorCheck:
    """Both on the same directions against the reference in float64, loss and gradient."""
    directions = unit_directions(x.shape[-1], num_slices, SEED, x.device)

    def found(x: Tensor, loss_of: Callable[..., Tensor]) -> Pair:
        leaf = x.detach().requires_grad_()
        loss = loss_of(leaf)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    op = partial(jepa_fast.sigreg_loss, num_knots=num_knots)
    exact = found(x.double(), lambda y: op(y, directions=directions.double(), implementation="reference"))
    theirs = found(x, lambda y: _published(y, directions, num_knots).float())
    return check_error(found(x, lambda y: op(y, directions=directions)), theirs, exact)


def _can_compile(device: torch.device) -> bool:
    if device.type == "cuda":
        return True
    from torch._inductor import cpp_builder  # asks for a C++ compiler and raises without one

    try:
        cpp_builder.get_cpp_compiler()
    except Exception:  # Inductor's errors have no public base
        return False
    return True
