"""What the covariance losses compute, accept and refuse."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast import barlow_twins_loss, covariance_loss, explain, variance_loss, vicreg_loss

LOSSES = (
    "covariance",
    "covariance_pairs",
    "variance",
    "vicreg",
    "vicreg_eb_jepa",
    "barlow",
    "barlow_unbiased",
)
BOTH = [pytest.param("native", marks=pytest.mark.native), "reference"]


@pytest.fixture
def views(draw) -> tuple[Tensor, Tensor]:
    first, second = draw(12, 7)
    return first.double().requires_grad_(), second.double().requires_grad_()


def same(ours: Tensor, theirs: Tensor, views: tuple[Tensor, ...]) -> None:
    """Loss and gradients agree to 1e-12, relative to the largest value."""
    found_all, expected_all = (
        (loss, *torch.autograd.grad(loss, views, retain_graph=True)) for loss in (ours, theirs)
    )
    for found, expected in zip(found_all, expected_all, strict=True):
        assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


def covariance_by_mask(z: Tensor) -> Tensor:
    """All entries of C beside the diagonal, picked by a mask."""
    z = z - z.mean(dim=0)
    matrix = torch.einsum("nc,nd->cd", z, z) / (z.shape[0] - 1)
    return matrix[~torch.eye(z.shape[1], dtype=torch.bool)]


def deviation(z: Tensor) -> Tensor:
    return torch.sqrt(z.var(dim=0) + 1e-4)


@pytest.mark.parametrize(
    ("names", "share", "pairs"),
    [
        (("vicreg", "lightly", "stable_pretraining"), 0.5, False),
        (("solo_learn",), 1.0, False),
        (("eb_jepa",), 1.0, True),
    ],
)
def test_vicreg_as_each_codebase_writes_it(views, names: tuple[str, ...], share: float, pairs: bool) -> None:
    hinges = sum(F.relu(1 - deviation(z)).mean() for z in views)
    squares = sum(
        covariance_by_mask(z).square().mean() if pairs else covariance_by_mask(z).square().sum() / z.shape[1]
        for z in views
    )
    expected = 20.0 * F.mse_loss(*views) + 15.0 * share * hinges + 3.0 * squares
    for name in names:
        found = vicreg_loss(*views, invariance=20.0, variance=15.0, covariance=3.0, normalization=name)
        same(found, expected, views)


@pytest.mark.parametrize("name", ["dim", "vicreg", "lightly", "solo_learn", "stable_pretraining"])
def test_covariance_over_features(views, name: str) -> None:
    expected = covariance_by_mask(views[0]).square().sum() / 7
    same(covariance_loss(views[0], normalization=name), expected, views[:1])


@pytest.mark.parametrize("name", ["pairs", "eb_jepa"])
def test_covariance_over_pairs(views, name: str) -> None:
    same(
        covariance_loss(views[0], normalization=name), covariance_by_mask(views[0]).square().mean(), views[:1]
    )


def test_variance(views) -> None:
    same(variance_loss(views[0]), F.relu(1 - deviation(views[0])).mean(), views[:1])
    expected = F.relu(1 - torch.sqrt(views[0].var(dim=0) + 0.3)).mean()
    same(variance_loss(views[0], eps=0.3), expected, views[:1])


@pytest.mark.parametrize(
    ("name", "factor"),
    [("barlow_twins", 1.0), ("lightly", 1.0), ("solo_learn", 0.025), ("stable_pretraining", 1.0)],
)
def test_barlow_twins_as_each_codebase_writes_it(views, name: str, factor: float) -> None:
    if name == "stable_pretraining":
        normalized = [(z - z.mean(0)) / (z.std(0) + 1e-5) for z in views]
    else:
        bn = torch.nn.BatchNorm1d(7, affine=False, dtype=torch.float64)
        normalized = [bn(z) for z in views]
    matrix = torch.einsum("bi,bj->ij", *normalized) / 12
    errors = (matrix - torch.eye(7, dtype=torch.float64)).square()
    weights = torch.full((7, 7), 0.005, dtype=torch.float64).fill_diagonal_(1.0)
    expected = factor * (weights * errors).sum()
    same(barlow_twins_loss(*views, off_diagonal=0.005, normalization=name), expected, views)


def test_defaults_are_those_of_the_papers_code(views, eager) -> None:
    for name, function in (("vicreg", vicreg_loss), ("barlow", barlow_twins_loss)):
        expected = eager(name, views)
        loss = function(*views)
        for found, true in zip((loss, *torch.autograd.grad(loss, views)), expected, strict=True):
            assert (found - true).abs().max() <= 1e-12 * true.abs().max()


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_equals_lightly(shape: tuple[int, int]) -> None:
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed (it asks for torchvision)")
    views = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    same(vicreg_loss(*views, normalization="lightly"), lightly.VICRegLoss()(*views), views)
    expected = lightly.BarlowTwinsLoss()(*views)
    same(barlow_twins_loss(*views, off_diagonal=5e-3, normalization="lightly"), expected, views)


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_equals_solo_learn(shape: tuple[int, int]) -> None:
    reason = "solo-learn is not installed (it asks for torchvision and lightning)"
    vicreg = pytest.importorskip("solo.losses.vicreg", reason=reason)
    barlow = pytest.importorskip("solo.losses.barlow", reason=reason)
    views = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    same(vicreg_loss(*views, normalization="solo_learn"), vicreg.vicreg_loss_func(*views), views)
    # its BatchNorm1d is of the default type
    torch.set_default_dtype(torch.float64)
    try:
        expected = barlow.barlow_loss_func(*views)
    finally:
        torch.set_default_dtype(torch.float32)
    same(barlow_twins_loss(*views, off_diagonal=5e-3, normalization="solo_learn"), expected, views)


# ---- collapse statistics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("shape", [(64, 24), (24, 64)])
def test_statistics_of_each_view(draw, implementation: str, shape: tuple[int, int]) -> None:
    views = draw(*shape)
    loss, statistics = vicreg_loss(*views, return_statistics=True, implementation=implementation)
    assert torch.equal(loss, vicreg_loss(*views, implementation=implementation))
    matrices = [view.double().T.cov() for view in views]
    rank = torch.stack([m.trace().square() / m.square().sum() for m in matrices])
    spectrum = torch.linalg.eigvalsh(matrices[0])
    torch.testing.assert_close(rank[0], spectrum.sum().square() / spectrum.square().sum())
    torch.testing.assert_close(statistics.effective_rank.double(), rank, rtol=1e-5, atol=0)
    expected = torch.stack([view.double().std(0) for view in views])
    torch.testing.assert_close(statistics.standard_deviation.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("implementation", BOTH)
def test_statistics_tell_collapse(implementation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(256, 1, generator=generator) @ torch.randn(1, 32, generator=generator)
    _, collapsed = covariance_loss(line, return_statistics=True, implementation=implementation)
    assert collapsed.effective_rank.item() == pytest.approx(1.0, rel=1e-5)
    orthogonal = torch.linalg.qr(torch.randn(256, 32, generator=generator, dtype=torch.float64)).Q
    orthogonal = torch.linalg.qr(orthogonal - orthogonal.mean(0)).Q.float()
    _, spread = covariance_loss(orthogonal, return_statistics=True, implementation=implementation)
    assert spread.effective_rank.item() == pytest.approx(32.0, rel=1e-5)


@pytest.mark.parametrize("implementation", BOTH)
def test_statistics_that_are_not_formed_are_nan(draw, implementation: str) -> None:
    first, second = draw(16, 8)
    _, statistics = variance_loss(first, return_statistics=True, implementation=implementation)
    assert statistics.effective_rank.isnan().all()
    assert statistics.standard_deviation.shape == (1, 8)
    _, statistics = barlow_twins_loss(first, second, return_statistics=True, implementation=implementation)
    assert statistics.effective_rank.shape == (1,)
    assert statistics.standard_deviation.shape == (2, 8)


# ---- layouts and bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("name", LOSSES)
def test_layouts(draw, evaluate, implementation: str, name: str) -> None:
    first, second = draw(20, 30)
    expected = evaluate(name, (first, second), implementation=implementation)
    wide = torch.zeros(20, 37)
    wide[:, 3:33] = first
    for layout in (wide[:, 3:33], first.T.contiguous().T, first.repeat_interleave(2, 0)[::2]):
        found = evaluate(name, (layout, second), implementation=implementation)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows(
    draw, evaluate, implementation: str, name: str, shape: tuple[int, int], value: float
) -> None:
    first, second = draw(*shape)
    first[3, 2] = value
    loss, *gradients = evaluate(name, (first, second), implementation=implementation)
    assert not loss.isfinite()
    if name != "variance":  # relu has no slope where it is not a number
        assert not gradients[0].isfinite().all()


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_constant_feature(
    draw, evaluate, oracle, implementation: str, name: str, shape: tuple[int, int]
) -> None:
    first, second = draw(*shape)
    first[:, 2] = 0.5  # its mean is exact
    found = evaluate(name, (first, second), implementation=implementation)
    assert all(value.isfinite().all() for value in found)
    torch.testing.assert_close(
        [value.double() for value in found], list(oracle(name, (first, second))), rtol=1e-3, atol=1e-5
    )


def test_a_weight_of_zero_leaves_a_term_out(draw, evaluate) -> None:
    first, second = draw(6, 20)
    for implementation in ("auto", "reference"):
        alone = vicreg_loss(first, second, invariance=0.0, variance=0.0, implementation=implementation)
        terms = sum(covariance_loss(view, implementation=implementation) for view in (first, second))
        torch.testing.assert_close(alone, terms)
        nothing = vicreg_loss(
            first, second, invariance=0, variance=0, covariance=0, implementation=implementation
        )
        assert nothing.item() == 0.0


@pytest.mark.native
def test_bad_arguments_are_named() -> None:
    a, b = torch.zeros(4, 8), torch.zeros(4, 8)
    for call, error, message in (
        (lambda: vicreg_loss(a[0], b), ValueError, r"z_a: expected a tensor \[N, D\], got \[8\]"),
        (lambda: vicreg_loss(a, b[None]), ValueError, r"z_b: expected a tensor \[N, D\], got \[1, 4, 8\]"),
        (lambda: vicreg_loss(a, b[:3]), ValueError, r"z_b: expected shape \[4, 8\] of z_a, got \[3, 8\]"),
        (
            lambda: vicreg_loss(a, b.half()),
            TypeError,
            r"z_b: expected torch.float32 of z_a, got torch.float16",
        ),
        (lambda: vicreg_loss(a, b.to("meta")), ValueError, "z_b: expected device cpu of z_a, got meta"),
        (
            lambda: vicreg_loss(a.long(), b),
            TypeError,
            "z_a: expected a floating-point dtype, got torch.int64",
        ),
        (lambda: covariance_loss(a[:1]), ValueError, r"z: expected at least two rows, got \[1, 8\]"),
        (
            lambda: barlow_twins_loss(a[:0], b[:0]),
            ValueError,
            r"z_a: expected at least two rows, got \[0, 8\]",
        ),
        (lambda: variance_loss(a[:, :0]), ValueError, r"z: expected at least one feature, got \[4, 0\]"),
        (
            lambda: covariance_loss(a[:, :1], normalization="eb_jepa"),
            ValueError,
            "z: expected at least two features for a mean over pairs",
        ),
        (
            lambda: variance_loss(a, eps=-1.0),
            ValueError,
            "eps: expected a finite number of at least 0, got -1.0",
        ),
        (
            lambda: vicreg_loss(a, b, variance=math.nan),
            ValueError,
            "variance: expected a finite number .*nan",
        ),
        (
            lambda: vicreg_loss(a, b, normalization="dim"),
            ValueError,
            "normalization: expected one of vicreg, eb_jepa, .* got 'dim'",
        ),
        (
            lambda: barlow_twins_loss(a, b, off_diagonal=-1),
            ValueError,
            "off_diagonal: expected a finite number",
        ),
        (
            lambda: barlow_twins_loss(a, b, normalization="vicreg"),
            ValueError,
            "expected one of barlow_twins, ",
        ),
        (
            lambda: covariance_loss(a, normalization="none"),
            ValueError,
            "expected one of dim, pairs, vicreg, ",
        ),
        (
            lambda: covariance_loss(a, group="world"),
            TypeError,
            "group: expected a torch.distributed.ProcessGroup",
        ),
        (
            lambda: covariance_loss(a.double(), implementation="native"),
            RuntimeError,
            "native cannot serve covariance: z is torch.float64",
        ),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.native
def test_explain_serves_all_four() -> None:
    z = torch.zeros(4, 8)
    for function in (covariance_loss, variance_loss):
        assert explain(function, z).chosen == "native"
    for function in (vicreg_loss, barlow_twins_loss):
        assert explain(function, z, z).chosen == "native"
    assert explain("covariance", z.double()).chosen == "reference"
    with pytest.raises(ValueError, match="views: expected one or two tensors, got 3"):
        explain("covariance", z, z, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(draw, evaluate, dtype: torch.dtype) -> None:
    views = draw(24, 40, dtype)
    for name in LOSSES:
        expected = evaluate(name, views)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = evaluate(name, views)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.dtype == theirs.dtype


def test_loss_is_a_scalar_of_at_least_float32(draw, evaluate: Callable[..., tuple[Tensor, ...]]) -> None:
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ):
        loss, *gradients = evaluate("vicreg", draw(6, 20, dtype))
        assert (loss.dtype, loss.shape) == (expected, ())
        assert all(gradient.dtype == dtype for gradient in gradients)
