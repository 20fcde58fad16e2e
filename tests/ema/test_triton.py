"""The Triton kernel: compiled on a GPU, through Triton's interpreter on the CPU (see tests/conftest.py)."""

import itertools

import pytest
import torch
from torch import Tensor

from jepa_fast import ema_update_
from jepa_fast.bench.measure import check_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bfloat16 is broken.
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE == "cuda" else ()))
PAIRS = list(itertools.product(DTYPES, DTYPES))
SIZES = (0, 1, 7, 1023, 1024, 1025, 8192, 20_000)  # round the block of 1024 and the chunk of 8192 or 32768
CANARY = 77.0


def draw(size: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def held(target: Tensor, source: Tensor, momentum: float, result: Tensor) -> None:
    oracle = momentum * target.double() + (1.0 - momentum) * source.double()
    eager = target.clone().mul_(momentum).add_((1.0 - momentum) * source)
    check = check_error([result], [eager], [oracle])
    assert check.passed, check.reason


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
@pytest.mark.parametrize(("target_dtype", "source_dtype"), PAIRS)
def test_error_budget(target_dtype: torch.dtype, source_dtype: torch.dtype, momentum: float) -> None:
    before = [draw(size, target_dtype, size) for size in SIZES]
    sources = [draw(size, source_dtype, size + 1) for size in SIZES]
    targets = [target.clone() for target in before]
    ema_update_(targets, sources, momentum, implementation="triton")
    for target, source, result in zip(before, sources, targets, strict=True):
        held(target, source, momentum, result)


@pytest.mark.parametrize("offset", [0, 1, 15])
@pytest.mark.parametrize("size", [1, 1025, 3000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_around_a_target_is_untouched(dtype: torch.dtype, size: int, offset: int) -> None:
    room = torch.full((size + 32,), CANARY, dtype=dtype, device=DEVICE)
    inner = room[offset : offset + size]
    inner.copy_(draw(size, dtype, 0))
    before, source = inner.clone(), draw(size, dtype, 1)
    ema_update_([inner], [source], 0.9, implementation="triton")
    held(before, source, 0.9, inner)
    assert (room[:offset] == CANARY).all()
    assert (room[offset + size :] == CANARY).all()


def test_one_list_of_every_kind() -> None:
    before = [draw(1500, pair[0], i) for i, pair in enumerate(PAIRS)]
    sources = [draw(1500, pair[1], 100 + i) for i, pair in enumerate(PAIRS)]
    targets = [target.clone() for target in before]
    counter, mask = torch.zeros(9001, dtype=torch.int64), torch.zeros(5, dtype=torch.bool)
    copied = [counter.to(DEVICE), mask.to(DEVICE)]
    originals = [torch.arange(9001).to(DEVICE), torch.ones(5, dtype=torch.bool).to(DEVICE)]
    ema_update_([*targets, *copied], [*sources, *originals], 0.75, implementation="triton")
    for target, source, result in zip(before, sources, targets, strict=True):
        held(target, source, 0.75, result)
    for result, original in zip(copied, originals, strict=True):
        assert torch.equal(result, original)


def test_momentum_is_read_from_memory() -> None:
    target, source = draw(3000, torch.float32, 0), draw(3000, torch.float16, 1)
    momentum = torch.zeros(1, device=DEVICE)
    for value in (0.25, 0.996):
        before = target.clone()
        momentum.fill_(value)
        ema_update_([target], [source], momentum, implementation="triton")
        held(before, source, momentum.item(), target)


def test_what_is_not_finite_stays_so() -> None:
    target = torch.tensor([torch.nan, 1.0, torch.inf, 1.0], device=DEVICE)
    source = torch.tensor([1.0, torch.nan, 1.0, torch.inf], device=DEVICE)
    ema_update_([target], [source], 0.9, implementation="triton")
    assert target[:2].isnan().all()
    assert not target[2:].isfinite().any()
