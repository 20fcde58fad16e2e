"""What `sigreg_loss` computes, accepts and refuses."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast import explain, sigreg_loss
from jepa_fast.bench.baselines.sigreg import sigreg
from jepa_fast.kernels.sigreg.settings import VARIANTS

IMPLEMENTATIONS = [pytest.param("native", marks=pytest.mark.native), "reference"]
DEFAULTS = {"levljepa": (4096, 17), "eb_jepa": (256, 10)}  # the others: 1024 slices, 17 knots


@pytest.mark.parametrize("knots", [None, 2, 3, 8, 9, 33])
@pytest.mark.parametrize("variant", VARIANTS)
def test_reference_is_the_published_formula(
    draw, columns, published, with_gradient, variant: str, knots: int | None
) -> None:
    x, directions = draw(2, 9, 6, dtype=torch.float64), columns(6, 7).double()
    options = {} if knots is None else {"num_knots": knots}
    found = with_gradient(lambda y: sigreg_loss(y, directions=directions, variant=variant, **options), x)
    extra = () if knots is None else (knots,)
    expected = with_gradient(lambda y: published[variant](y, directions, *extra), x)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("t_max", [1.0, 5.0])
@pytest.mark.parametrize("variant", [name for name, form in VARIANTS.items() if form.t_max])
def test_range_of_the_knots(draw, columns, published, variant: str, t_max: float) -> None:
    x, directions = draw(2, 9, 6, dtype=torch.float64), columns(6, 7).double()
    found = sigreg_loss(x, directions=directions, variant=variant, t_max=t_max, num_knots=12)
    expected = published[variant](x, directions, 12, t_max)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_far_samples_under_the_gaussian_kernel(draw, columns, published, with_gradient) -> None:
    # One sample as far from the rest as standardisation allows: the quadrature must reach that far.
    x, directions = 1e-3 * draw(60, 5, dtype=torch.float64), columns(5, 4).double()
    x[17] = 100.0
    found = with_gradient(lambda y: sigreg_loss(y, directions=directions, variant="h_jepa"), x)
    expected = with_gradient(lambda y: published["h_jepa"](y, directions), x)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-15)


@pytest.mark.native
@pytest.mark.parametrize("variant", VARIANTS)
def test_native_serves_every_variant(draw, with_gradient, variant: str) -> None:
    x = draw(3, 40, 12)
    loss, gradient = with_gradient(lambda y: sigreg_loss(y, variant=variant, implementation="native"), x)
    expected, true = with_gradient(
        lambda y: sigreg_loss(y, variant=variant, implementation="reference"), x.double()
    )
    torch.testing.assert_close(loss.double(), expected, rtol=3e-6, atol=0)
    torch.testing.assert_close(gradient.double(), true, rtol=1e-4, atol=3e-6 * true.abs().max().item())


@pytest.mark.parametrize("variant", VARIANTS)
def test_defaults_of_the_variants(draw, variant: str) -> None:
    x = draw(8, 5, dtype=torch.float64)
    slices, knots = DEFAULTS.get(variant, (1024, 17))
    limit = {} if variant == "h_jepa" else {"t_max": 3.0}
    explicit = sigreg_loss(x, variant=variant, num_slices=slices, num_knots=knots, **limit)
    assert torch.equal(sigreg_loss(x, variant=variant), explicit)
    assert not torch.equal(sigreg_loss(x, variant=variant, num_slices=slices + 1), explicit)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_published_loss_up_to_float32(draw, columns, implementation: str) -> None:
    x, directions = draw(2, 30, 16), columns(16, 50)
    torch.testing.assert_close(
        sigreg_loss(x, directions=directions, implementation=implementation), sigreg(x, directions)
    )


def test_the_baseline_of_the_benchmarks_is_the_published_formula(draw, columns, with_gradient) -> None:
    x, directions = draw(2, 9, 6, dtype=torch.float64), columns(6, 7).double()
    found = with_gradient(lambda y: sigreg(y, directions, num_knots=9, t_max=5.0), x)
    expected = with_gradient(lambda y: sigreg_loss(y, directions=directions, num_knots=9, t_max=5.0), x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gaussian_samples_score_as_expected_and_others_higher(draw, implementation: str) -> None:
    # E[N |c_N(t) - phi(t)|^2] = 1 - phi(t)^2 for the characteristic function c_N of N samples, whatever N.
    t = torch.arange(17, dtype=torch.float64) * 3.0 / 16
    phi = torch.exp(-t.square() / 2)
    expected = torch.trapezoid(2 * phi * (1 - phi.square()), t)
    gaussian = draw(4000, 32)
    for samples in (gaussian, gaussian[:1000]):
        found = sigreg_loss(samples, num_slices=512, implementation=implementation)
        assert (
            abs(found / expected - 1) < 0.3
        )  # 32 independent directions, each with a deviation of about its mean
    for other in (0.5 * gaussian, gaussian + 1.0, gaussian.abs(), torch.zeros_like(gaussian)):
        assert sigreg_loss(other, num_slices=512, implementation=implementation) > 20 * expected


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_constant_features(columns, published, with_gradient, implementation: str) -> None:
    directions = columns(6, 20)
    for value in (0.0, 1.5):
        x = torch.full((50, 6), value)
        loss, gradient = with_gradient(
            lambda y: sigreg_loss(y, directions=directions, implementation=implementation), x
        )
        true, expected = with_gradient(lambda y: published["lejepa"](y, directions.double()), x.double())
        torch.testing.assert_close(loss.double(), true, rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows(
    draw, with_gradient, value: float, variant: str, implementation: str
) -> None:
    x = draw(20, 8)
    x[3, 2] = value
    loss, gradient = with_gradient(
        lambda y: sigreg_loss(y, num_slices=32, variant=variant, implementation=implementation), x
    )
    assert loss.isnan()
    assert gradient.isnan().any()


def test_result_is_a_float32_scalar(draw, with_gradient) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loss, gradient = with_gradient(sigreg_loss, draw(10, 6, dtype=dtype))
        assert (loss.dtype, loss.shape) == (torch.float32, ())
        assert gradient.dtype == dtype
    assert sigreg_loss(draw(10, 6, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(draw, with_gradient, dtype: torch.dtype) -> None:
    x = draw(30, 8, dtype=dtype)
    expected = with_gradient(sigreg_loss, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradient(sigreg_loss, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_seed_as_an_integer_or_a_tensor(draw) -> None:
    x = draw(10, 6)
    for seed in (0, 5, -1, 2**40 + 3):
        assert torch.equal(sigreg_loss(x, seed=seed), sigreg_loss(x, seed=torch.tensor(seed)))
    assert not torch.equal(sigreg_loss(x, seed=1), sigreg_loss(x, seed=2))
    assert not torch.equal(sigreg_loss(x, seed=1), sigreg_loss(x, seed=1 + 2**32))


def test_directions_replace_the_drawn_ones(draw, columns) -> None:
    x, directions = draw(10, 6), columns(6, 9)
    assert torch.equal(sigreg_loss(x, directions=directions), sigreg_loss(x, directions=directions, seed=4))
    wide = directions.t().contiguous().t()  # not contiguous
    torch.testing.assert_close(sigreg_loss(x, directions=wide), sigreg_loss(x, directions=directions))


@pytest.mark.native
def test_bad_arguments_are_named(draw) -> None:
    x = draw(4, 6)
    a = torch.ones(6, 3)
    for arguments, options, error, message in (
        (
            (x[0],),
            {},
            ValueError,
            r"x: expected \[\.\.\., N, D\] with at least one view and feature, got \[6\]",
        ),
        ((x[:, :0],), {}, ValueError, r"x: expected .* got \[4, 0\]"),
        ((x.expand(0, 4, 6),), {}, ValueError, r"x: expected .* got \[0, 4, 6\]"),
        ((x[:1],), {}, ValueError, r"x: expected at least N = 2 samples, got 1 in \[1, 6\]"),
        ((x[:0],), {}, ValueError, r"x: expected at least N = 2 samples, got 0 in \[0, 6\]"),
        ((x.long(),), {}, TypeError, "x: expected a floating-point dtype, got torch.int64"),
        ((x.cfloat(),), {}, TypeError, "x: expected a floating-point dtype, got torch.complex64"),
        ((x,), {"num_slices": 0}, ValueError, "num_slices: expected at least 1, got 0"),
        (
            (x,),
            {"num_slices": 2**32},
            ValueError,
            r"num_slices: expected D \* num_slices below 2\^34, got 6 ",
        ),
        ((x,), {"num_knots": 1}, ValueError, "num_knots: expected at least 2, got 1"),
        ((x,), {"t_max": 0.0}, ValueError, "t_max: expected a finite number above 0, got 0.0"),
        ((x,), {"t_max": math.inf}, ValueError, "t_max: expected a finite number above 0, got inf"),
        ((x,), {"t_max": math.nan}, ValueError, "t_max: expected a finite number above 0, got nan"),
        (
            (x,),
            {"t_max": 3.0, "variant": "h_jepa"},
            ValueError,
            "t_max: the variant h_jepa has none, got 3.0",
        ),
        ((x,), {"variant": "visreg"}, ValueError, "variant: expected one of lejepa, .*, got 'visreg'"),
        ((x,), {"seed": 2**63}, ValueError, "seed: expected an integer of 64 bits, got 9223372036854775808"),
        (
            (x,),
            {"seed": torch.zeros(2, dtype=torch.int64)},
            TypeError,
            r"seed: expected an int or int64 with one .*, got torch.int64 \[2\]",
        ),
        ((x,), {"seed": torch.zeros(())}, TypeError, r"seed: expected an int or int64 .*, got torch.float32"),
        (
            (x,),
            {"seed": torch.zeros((), dtype=torch.int64, device="meta")},
            ValueError,
            "seed: expected device cpu of x, got meta",
        ),
        ((x,), {"directions": a[0]}, ValueError, r"directions: expected \[D, M\] with D = 6, got \[3\]"),
        ((x,), {"directions": a[:5]}, ValueError, r"directions: expected \[D, M\] with D = 6, got \[5, 3\]"),
        (
            (x,),
            {"directions": a.long()},
            TypeError,
            "directions: expected a floating-point dtype, got torch.int",
        ),
        ((x,), {"directions": a.to("meta")}, ValueError, "directions: expected device cpu of x, got meta"),
        (
            (x,),
            {"directions": a.clone().requires_grad_()},
            ValueError,
            "directions: expected no gradient to be required",
        ),
        (
            (x,),
            {"directions": a, "num_slices": 4},
            ValueError,
            "num_slices: expected 3, as in directions, got 4",
        ),
        ((x,), {"implementation": "cuda"}, ValueError, "implementation: expected auto, .*got 'cuda'"),
        (
            (x.double(),),
            {"implementation": "native"},
            RuntimeError,
            "native cannot serve sigreg: x is torch.float64",
        ),
    ):
        with pytest.raises(error, match=message):
            sigreg_loss(*arguments, **options)


@pytest.mark.native
def test_explain_checks_its_arguments(draw) -> None:
    x: Tensor = draw(4, 6)
    assert explain(sigreg_loss, x, variant="eb_jepa").chosen == "native"
    assert explain("sigreg", x.double()).chosen == "reference"
    with pytest.raises(ValueError, match="variant: expected one of"):
        explain("sigreg", x, variant="visreg")


def test_reference_takes_a_few_slices_at_a_time(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    from jepa_fast.kernels.sigreg import reference

    x = draw(40, 6, dtype=torch.float64)
    expected = sigreg_loss(x, num_slices=50)
    monkeypatch.setattr(reference, "_VALUES", 40 * 7)  # seven slices at a time
    torch.testing.assert_close(sigreg_loss(x, num_slices=50), expected, rtol=1e-13, atol=0)


def test_layouts(draw, columns) -> None:
    x, directions = draw(3, 20, 8), columns(8, 16)
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda y: y.transpose(0, 1).contiguous().transpose(0, 1),
        lambda y: y.transpose(1, 2).contiguous().transpose(1, 2),
        lambda y: torch.cat([y, y], dim=2)[..., :8],
    ]
    expected = sigreg_loss(x, directions=directions)
    for function in functions:
        torch.testing.assert_close(sigreg_loss(function(x), directions=directions), expected)
