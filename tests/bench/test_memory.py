"""Peak memory against allocation patterns whose peak is known."""

from collections.abc import Callable

import pytest
import torch

from jepa_fast.bench.measure import peak_memory

MIB = 2**20


def allocate(mebibytes: int, device: str = "cpu") -> torch.Tensor:
    return torch.empty(mebibytes * MIB, dtype=torch.uint8, device=device)


def one_after_the_other(device: str) -> None:
    for _ in range(5):
        allocate(3, device)


def staircase(device: str) -> torch.Tensor:
    first = allocate(1, device)
    second = allocate(2, device)
    del first
    third = allocate(4, device)  # the peak: 2 + 4
    del second, third
    return allocate(1, device)


def kept_results(device: str) -> list[torch.Tensor]:
    return [allocate(1, device) for _ in range(7)]


PATTERNS = [(one_after_the_other, 3 * MIB), (staircase, 6 * MIB), (kept_results, 7 * MIB)]


@pytest.mark.parametrize(("pattern", "expected"), PATTERNS)
def test_peak_is_exact(pattern: Callable[[str], object], expected: int) -> None:
    assert peak_memory(lambda: pattern("cpu")) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("pattern", "expected"), PATTERNS)
def test_peak_is_exact_on_cuda(pattern: Callable[[str], object], expected: int) -> None:
    assert peak_memory(lambda: pattern("cuda"), "cuda") == expected


def test_what_was_held_before_neither_counts_nor_gives_credit() -> None:
    held = [allocate(10)]

    def swap() -> torch.Tensor:
        held.clear()
        return allocate(4)

    assert peak_memory(swap) == 4 * MIB


def test_temporaries_inside_an_operator_are_seen() -> None:
    x = torch.randn(MIB)
    result = x.logsumexp(0)  # a scalar, through exp(x - max)
    assert result.numel() == 1
    assert peak_memory(lambda: x.logsumexp(0)) >= x.numel() * x.element_size()


def test_an_in_place_call_has_no_peak() -> None:
    x = torch.randn(MIB)
    assert peak_memory(x.neg_) == 0


def test_nothing_is_written_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    peak_memory(lambda: allocate(1))
    assert capfd.readouterr().err == ""


def test_an_error_of_the_call_passes_through_and_leaves_the_profiler_usable() -> None:
    def fail() -> None:
        raise RuntimeError("from the call")

    with pytest.raises(RuntimeError, match="from the call"):
        peak_memory(fail)
    assert peak_memory(lambda: allocate(2)) == 2 * MIB
