"""The Triton kernel: compiled on a GPU, through Triton's interpreter on the CPU (see tests/conftest.py)."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast import latent_prediction_loss
from jepa_fast.bench.measure import check_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bfloat16 is broken.
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE == "cuda" else ()))
PAIRS = list(itertools.product(DTYPES, DTYPES))
PENALTIES = [("smooth_l1", 1.0), ("smooth_l1", 0.5), ("smooth_l1", 0.0), ("l1", 1.0), ("mse", 1.0)]
Pair = tuple[Tensor, Tensor]
Check = Callable[..., None]


@pytest.fixture
def hold(
    loss_and_gradient: Callable[..., Pair], eager: Callable[..., Pair], oracle: Callable[..., Pair]
) -> Check:
    def check(prediction: Tensor, target: Tensor, index: Tensor | None, **options: object) -> None:
        prediction, target = prediction.to(DEVICE), target.to(DEVICE)
        index = None if index is None else index.to(DEVICE)
        ours = loss_and_gradient(prediction, target, index, implementation="triton", **options)
        theirs = eager(prediction, target, index, **options)
        result = check_error(ours, theirs, oracle(prediction, target, index, **options))
        assert result.passed, result.reason

    return check


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("features", [1, 24, 33, 256, 384, 1408])
def test_widths_and_dtypes(draw, hold: Check, features: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    hold(*draw(features=features, dtypes=dtypes))


@pytest.mark.parametrize("normalize_target", [True, False])
@pytest.mark.parametrize(("kind", "beta"), PENALTIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_penalties(
    draw, hold: Check, dtype: torch.dtype, kind: str, beta: float, normalize_target: bool
) -> None:
    arguments = draw(features=100, dtypes=(dtype, dtype))
    hold(*arguments, kind=kind, beta=beta, normalize_target=normalize_target)


def test_indexing_and_layouts(draw, hold: Check) -> None:
    prediction, target, index = draw(samples=3, tokens=4)
    hold(prediction, target, None)
    hold(prediction, target, index[:3])
    hold(prediction, target, index[:, :1].expand(-1, 4))
    hold(prediction[:, :1], target, index[:, :1])
    hold(prediction[:, :1].expand(-1, 4, -1), target[:1].expand(3, -1, -1), index)
    hold(prediction[..., 3:30], target.permute(2, 1, 0).contiguous().permute(2, 1, 0)[..., 5:32], index)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_common_offset_does_not_cancel(draw, hold: Check, dtype: torch.dtype) -> None:
    hold(*draw(features=384, dtypes=(dtype, dtype), mean=1e3))


def test_upstream_gradient_and_second_backward(
    draw, oracle: Callable[..., Pair], eager: Callable[..., Pair]
) -> None:
    prediction, target, index = (tensor.to(DEVICE) for tensor in draw())
    leaf = prediction.clone().requires_grad_()
    loss = 3.0 * latent_prediction_loss(leaf, target, index, implementation="triton")
    first, second = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    true, theirs = 3.0 * oracle(prediction, target, index)[1], 3.0 * eager(prediction, target, index)[1]
    assert check_error([first], [theirs], [true]).passed


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "mse"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite_predictions_show(
    draw, loss_and_gradient: Callable[..., Pair], kind: str, value: float
) -> None:
    prediction, target, index = (tensor.to(DEVICE) for tensor in draw())
    prediction[1, 2, 3] = value
    loss, gradient = loss_and_gradient(prediction, target, index, kind=kind, implementation="triton")
    assert not loss.isfinite()
    _, expected = loss_and_gradient(prediction, target, index, kind=kind, implementation="reference")
    if value != value:
        expected[1, 2, 3] = value  # PyTorch's own L1 forgets it
    torch.testing.assert_close(gradient, expected, equal_nan=True)


def test_every_output_is_written_and_nothing_else(draw, poisoned_memory: Callable[..., None]) -> None:
    poisoned_memory("triton", *(tensor.to(DEVICE) for tensor in draw(features=33)))
