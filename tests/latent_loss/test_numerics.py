"""The native kernel against the float64 reference, with the error budget of the design."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast.bench.measure import check_error

pytestmark = pytest.mark.native
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAIRS = [(prediction, target) for prediction in DTYPES for target in DTYPES]
WIDTHS = (1, 15, 16, 24, 33, 100, 192, 384, 1408)
PENALTIES = [("smooth_l1", 1.0), ("smooth_l1", 0.5), ("smooth_l1", 0.0), ("l1", 1.0), ("mse", 1.0)]
Pair = tuple[Tensor, Tensor]
Check = Callable[..., None]


@pytest.fixture
def hold(
    loss_and_gradient: Callable[..., Pair], eager: Callable[..., Pair], oracle: Callable[..., Pair]
) -> Check:
    def check(prediction: Tensor, target: Tensor, index: Tensor | None, **options: object) -> None:
        ours = loss_and_gradient(prediction, target, index, implementation="native", **options)
        theirs = eager(prediction, target, index, **options)
        result = check_error(ours, theirs, oracle(prediction, target, index, **options))
        assert result.passed, result.reason

    return check


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("features", WIDTHS)
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


@pytest.mark.parametrize("indexing", ["none", "shared", "duplicates", "one", "strided"])
def test_indexing(draw, hold: Check, indexing: str) -> None:
    prediction, target, index = draw(samples=3, masks=2, tokens=4)
    if indexing == "none":
        hold(prediction, target, None)
    elif indexing == "shared":
        hold(prediction, target, index[:3])
    elif indexing == "duplicates":
        hold(prediction, target, index[:, :1].expand(-1, 4))
    elif indexing == "one":
        hold(prediction[:, :1], target, index[:, :1])
    else:
        hold(prediction, target, index.t().contiguous().t())


def test_layouts(draw, hold: Check) -> None:
    prediction, target, index = draw()
    rows, tokens, features = prediction.shape
    hold(prediction.transpose(1, 2).contiguous().transpose(1, 2), target, index)
    hold(prediction[:, :1].expand(-1, tokens, -1), target, index)
    hold(prediction[:1].expand(rows, -1, -1), target[:1].expand(2, -1, -1), index)
    hold(prediction, target.permute(2, 1, 0).contiguous().permute(2, 1, 0), index)
    hold(prediction[..., 3:30], target[..., 5:32], index)  # misaligned rows with gaps
    hold(prediction[..., :1].expand(-1, -1, features), target, index)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [33, 384])
def test_large_common_offset_does_not_cancel(draw, hold: Check, dtype: torch.dtype, features: int) -> None:
    hold(*draw(features=features, dtypes=(dtype, dtype), mean=1e3))


def test_constant_target_rows(draw, hold: Check) -> None:
    prediction, target, index = draw(features=384)
    hold(prediction, torch.full_like(target, 0.5), index)
    hold(prediction, target, index, eps=0.0)


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "mse"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_finite_predictions_show(
    draw, loss_and_gradient: Callable[..., Pair], kind: str, value: float
) -> None:
    prediction, target, index = draw()
    prediction[1, 2, 3] = value
    loss, gradient = loss_and_gradient(prediction, target, index, kind=kind, implementation="native")
    true_loss, true_gradient = loss_and_gradient(
        prediction, target, index, kind=kind, implementation="reference"
    )
    assert torch.equal(loss.isnan(), true_loss.isnan())
    assert not loss.isfinite()
    if value == value:
        torch.testing.assert_close(gradient, true_gradient)
    else:
        assert gradient[1, 2, 3].isnan()
        assert gradient.isnan().sum() == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite_target_spoils_its_row_alone(
    draw, loss_and_gradient: Callable[..., Pair], value: float
) -> None:
    prediction, target, index = draw()
    target[1, index[1, 2], 0] = value
    loss, gradient = loss_and_gradient(prediction, target, index, implementation="native")
    assert loss.isnan()
    spoiled = gradient.isnan().all(-1)
    assert spoiled[1, 2]
    assert torch.equal(gradient.isnan().any(-1), spoiled)
    assert not spoiled[0::2].any()  # the other sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_deterministic_whatever_the_threads(
    draw, loss_and_gradient: Callable[..., Pair], dtype: torch.dtype
) -> None:
    arguments = draw(samples=4, length=256, masks=4, tokens=44, features=192, dtypes=(dtype, dtype))
    expected = loss_and_gradient(*arguments, implementation="native")
    before = torch.get_num_threads()
    try:
        for repeat in range(10):
            torch.set_num_threads(1 + repeat % 3)
            found = loss_and_gradient(*arguments, implementation="native")
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 15, 33, 384])
def test_every_output_is_written_and_nothing_else(
    draw, poisoned_memory: Callable[..., None], features: int, dtype: torch.dtype
) -> None:
    poisoned_memory("native", *draw(features=features, dtypes=(dtype, dtype)))
