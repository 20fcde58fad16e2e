"""Every implementation against the formula in float64, with the error budget of the design."""

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from jepa_fast import ema_update_
from jepa_fast.bench.measure import check_error

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAIRS = [(target, source) for target in DTYPES for source in DTYPES]
MOMENTA = (0.0, 0.3, 0.996, 1.0)
SIZES = (0, 1, 7, 15, 16, 17, 1000, 100_003)  # the last takes more than one chunk


def draw(sizes: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def oracle(targets: list[Tensor], sources: list[Tensor], momentum: float) -> list[Tensor]:
    return [
        momentum * target.double() + (1.0 - momentum) * source.double()
        for target, source in zip(targets, sources, strict=True)
    ]


def eager(targets: list[Tensor], sources: list[Tensor], momentum: float) -> list[Tensor]:
    """The published loop."""
    return [
        target.clone().mul_(momentum).add_((1.0 - momentum) * source)
        for target, source in zip(targets, sources, strict=True)
    ]


def updated(
    targets: list[Tensor], sources: list[Tensor], momentum: float | Tensor, name: str
) -> list[Tensor]:
    results = [target.clone() for target in targets]
    ema_update_(results, sources, momentum, implementation=name)
    return results


@pytest.mark.parametrize("name", [pytest.param("native", marks=pytest.mark.native), "reference"])
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize(("target_dtype", "source_dtype"), PAIRS)
def test_error_budget(
    target_dtype: torch.dtype, source_dtype: torch.dtype, momentum: float, name: str
) -> None:
    targets, sources = draw(SIZES, target_dtype, 0), draw(SIZES, source_dtype, 1)
    ours = updated(targets, sources, momentum, name)
    check = check_error(ours, eager(targets, sources, momentum), oracle(targets, sources, momentum))
    assert check.passed, check.reason


@pytest.mark.native
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize(("target_dtype", "source_dtype"), PAIRS)
def test_native_is_the_reference_but_for_one_rounding(
    target_dtype: torch.dtype, source_dtype: torch.dtype, momentum: float
) -> None:
    targets, sources = draw(SIZES, target_dtype, 2), draw(SIZES, source_dtype, 3)
    native = updated(targets, sources, momentum, "native")
    reference = updated(targets, sources, momentum, "reference")
    torch.testing.assert_close(native, reference, rtol=torch.finfo(target_dtype).eps, atol=1e-7)


@pytest.mark.native
@pytest.mark.parametrize("momentum", MOMENTA)
def test_float32_is_foreach_lerp_bit_for_bit(momentum: float) -> None:
    targets, sources = draw(SIZES, torch.float32, 4), draw(SIZES, torch.float32, 5)
    expected = [target.clone() for target in targets]
    torch._foreach_lerp_(expected, sources, 1.0 - momentum)
    for ours, theirs in zip(updated(targets, sources, momentum, "native"), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [pytest.param("native", marks=pytest.mark.native), "reference"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_momentum_tensor_is_momentum_by_value(name: str, shape: tuple[int, ...]) -> None:
    targets, sources = draw(SIZES, torch.float32, 6), draw(SIZES, torch.bfloat16, 7)
    momentum = torch.full(shape, 0.996)
    by_tensor = updated(targets, sources, momentum, name)
    by_value = updated(targets, sources, momentum.item(), name)
    for ours, theirs in zip(by_tensor, by_value, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.native
@pytest.mark.parametrize("threads", [1, 2])
def test_deterministic_whatever_the_threads(threads: int) -> None:
    targets, sources = draw(SIZES, torch.float32, 8), draw(SIZES, torch.float16, 9)
    expected = updated(targets, sources, 0.99, "native")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for ours, theirs in zip(updated(targets, sources, 0.99, "native"), expected, strict=True):
            assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [pytest.param("native", marks=pytest.mark.native), "reference"])
def test_not_finite_values_stay_so(dtype: torch.dtype, name: str) -> None:
    target = torch.tensor([torch.nan, 1.0, torch.inf, 1.0, -torch.inf] * 5, dtype=dtype)
    source = torch.tensor([1.0, torch.nan, 1.0, torch.inf, -torch.inf] * 5, dtype=dtype)
    (result,) = updated([target], [source], 0.9, name)
    (expected,) = oracle([target], [source], 0.9)
    torch.testing.assert_close(result.isfinite(), expected.isfinite())
    assert result.view(5, 5)[:, :2].isnan().all()


@pytest.mark.parametrize("name", [pytest.param("native", marks=pytest.mark.native), "reference"])
def test_float16_subnormals_and_overflow(name: str) -> None:
    smallest, largest = 2.0**-24, torch.finfo(torch.float16).max
    target = torch.tensor([smallest, 3 * smallest, -smallest, largest, -largest, 0.0], dtype=torch.float16)
    source = torch.tensor([3 * smallest, 1e-7, smallest / 2, 1e6, -1e6, 65519.0], dtype=torch.float32)
    (result,) = updated([target], [source], 0.5, name)
    assert torch.equal(result, oracle([target], [source], 0.5)[0].to(torch.float16))


shapes = st.lists(st.lists(st.integers(0, 40), max_size=3), max_size=6)


@pytest.mark.native
@settings(max_examples=60, deadline=None, derandomize=True)
@given(shapes, st.lists(st.sampled_from(PAIRS), min_size=6, max_size=6), st.floats(0, 1), st.integers(0, 3))
def test_any_list_of_shapes(
    shapes: list[list[int]], pairs: list[tuple[torch.dtype, torch.dtype]], momentum: float, offset: int
) -> None:
    generator = torch.Generator().manual_seed(len(shapes))

    def view(shape: list[int], dtype: torch.dtype) -> Tensor:
        count = int(torch.tensor(shape).prod()) if shape else 1
        return torch.randn(count + offset, generator=generator).to(dtype)[offset:].view(shape)

    targets = [view(shape, pair[0]) for shape, pair in zip(shapes, pairs, strict=False)]
    sources = [view(shape, pair[1]) for shape, pair in zip(shapes, pairs, strict=False)]
    before = [target.clone() for target in targets]
    true, theirs = oracle(before, sources, momentum), eager(before, sources, momentum)
    ema_update_(targets, sources, momentum, implementation="native")
    if targets:
        check = check_error(targets, theirs, true)
        assert check.passed, check.reason
