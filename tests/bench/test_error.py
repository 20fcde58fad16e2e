"""The error budget lets a good kernel through and stops a wrong one."""

import math

import pytest
import torch

from jepa_fast.bench.measure import check_error


def softmaxes(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager softmax in `dtype`, and the float64 oracle on the same values."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    return x.softmax(-1), x.double().softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eager_is_within_its_own_budget(dtype: torch.dtype) -> None:
    eager, oracle = softmaxes(dtype)
    check = check_error([eager], [eager], [oracle])
    assert check.passed
    assert check.error == check.eager_error > 0
    assert 0 < check.ratio <= 1  # 1, or less where eager itself is better than rounding once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_kernel_is_stopped_with_a_reason(dtype: torch.dtype) -> None:
    eager, oracle = softmaxes(dtype)
    ulp = torch.finfo(dtype).eps
    wrong = eager.clone()
    wrong[3, 5] += 10 * ulp * oracle.abs().max().item()
    check = check_error([eager, wrong], [eager, eager], [oracle, oracle])
    assert not check.passed
    assert check.reason.startswith("output 1: relative error ")
    assert check.error > check.budget


def test_nan_is_an_error() -> None:
    eager, oracle = softmaxes(torch.float32)
    broken = eager.clone()
    broken[0, 0] = math.nan
    assert not check_error([broken], [eager], [oracle]).passed


def test_a_wrong_shape_or_dtype_is_stopped() -> None:
    eager, oracle = softmaxes(torch.float32)
    assert "expected torch.float32 [64, 256], got torch.float32 [64, 255]" in (
        check_error([eager[:, 1:]], [eager], [oracle]).reason
    )
    assert "got torch.float64" in check_error([oracle], [eager], [oracle]).reason


def test_a_missing_output_is_refused() -> None:
    eager, oracle = softmaxes(torch.float32)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        check_error([eager], [eager, eager], [oracle, oracle])
    with pytest.raises(ValueError, match="ours: expected at least one output, got none"):
        check_error([], [], [])


def test_an_exact_eager_result_still_leaves_a_floor() -> None:
    oracle = torch.ones(4, dtype=torch.float64)
    eager = torch.ones(4)
    ulp = torch.finfo(torch.float32).eps
    assert check_error([eager + ulp], [eager], [oracle]).passed
    assert not check_error([eager + 3 * ulp], [eager], [oracle]).passed
