"""The native kernels against the float64 reference, with the error budget of the design."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import covariance_loss
from jepa_fast.bench.measure import check_error
from jepa_fast.kernels.covariance import forms

pytestmark = pytest.mark.native
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOSSES = (
    "covariance",
    "covariance_pairs",
    "variance",
    "vicreg",
    "vicreg_eb_jepa",
    "barlow",
    "barlow_unbiased",
)
# Gram form, tiled form, both beside N = D; odd widths; several blocks.
SHAPES = ((5, 300), (64, 129), (300, 64), (33, 31), (100, 101), (100, 100), (140, 200))
Outputs = tuple[Tensor, ...]
Check = Callable[..., None]


@pytest.fixture
def hold(evaluate, eager, oracle) -> Check:
    def check(name: str, views: Outputs, **options: Any) -> None:
        ours = evaluate(name, views, implementation="native", **options)
        result = check_error(ours, eager(name, views), oracle(name, views))
        assert result.passed, result.reason

    return check


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_dtypes(draw, hold: Check, shape: tuple[int, int], name: str, dtype: torch.dtype) -> None:
    hold(name, draw(*shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["covariance", "vicreg", "barlow"])
@pytest.mark.parametrize("shape", [(50, 210), (210, 190)])
def test_several_tiles_and_panels(
    draw, hold: Check, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], name: str, dtype: torch.dtype
) -> None:
    for limit, value in (("_TILE", 64), ("_PANEL", 96), ("_SCRATCH", 1), ("_BLOCK", 32)):
        monkeypatch.setattr(forms, limit, value)
    hold(name, draw(*shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(96, 130), (130, 96)])
def test_large_common_offset_does_not_cancel(
    draw, hold: Check, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    for name in ("covariance", "variance", "vicreg"):
        hold(name, draw(*shape, dtype, mean=300.0))


# ---- cancellation of the total by the diagonal ----------------------------------------------------------------


def decorrelated(rows: int, features: int, noise: float) -> Tensor:
    """Features whose covariances are as small as `noise` makes them; rows > features, or they cannot be."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(rows, features + 1, generator=generator, dtype=torch.float64)).Q
    # Against the constant first column of a QR factorisation every feature has mean 0.
    basis = torch.linalg.qr(torch.cat([torch.ones(rows, 1, dtype=torch.float64), basis[:, :-1]], dim=1)).Q
    values = basis[:, 1:] * rows**0.5
    return (values + noise * torch.randn(rows, features, generator=generator, dtype=torch.float64)).float()


@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3])
def test_nearly_decorrelated_features(hold: Check, noise: float) -> None:
    # N >= D: the tiled form, which never forms the diagonal.
    hold("covariance", (decorrelated(256, 200, noise),))


@pytest.mark.parametrize("scale", [3.0, 10.0, 100.0, 1e4])
@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("shape", [(64, 400), (128, 200), (199, 200)])
def test_features_that_outweigh_the_rest(
    draw, hold: Check, shape: tuple[int, int], count: int, scale: float
) -> None:
    # N < D: what the Gram form subtracts is dominated by `count` features of `scale` times the deviation.
    first, second = draw(*shape)
    first[:, ::7][:, :count] *= scale
    for name in ("covariance", "vicreg"):
        hold(name, (first, second))


@pytest.mark.parametrize("shape", [(64, 400), (199, 200)])
def test_decorrelated_as_far_as_the_rank_allows(hold: Check, shape: tuple[int, int]) -> None:
    rows, features = shape
    generator = torch.Generator().manual_seed(2)
    # A tight frame: all features of one length, the rows orthogonal; |C|_F^2 is the least that its trace allows.
    frame = torch.linalg.qr(torch.randn(features, rows, generator=generator, dtype=torch.float64)).Q.T
    for _ in range(200):
        frame = torch.linalg.svd(frame / frame.norm(dim=0), full_matrices=False)
        frame = frame.U @ frame.Vh
    hold("covariance", ((frame * features**0.5).float(),))


def test_the_exact_form_serves_only_where_it_is_needed(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    exact = forms.exact_gram_matrix
    monkeypatch.setattr(forms, "exact_gram_matrix", lambda *a: taken.append(1) or exact(*a))
    first, _ = draw(64, 400)
    covariance_loss(first)
    assert not taken
    first[:, 7] *= 100.0
    covariance_loss(first)
    assert taken


# ---- memory and determinism -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(96, 700), (700, 96)])
def test_deterministic_whatever_the_threads(
    draw, evaluate, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    views = draw(*shape, dtype)
    before = torch.get_num_threads()
    try:
        for name in ("vicreg", "barlow"):
            torch.set_num_threads(2)
            expected = evaluate(name, views, implementation="native")
            for _ in range(3):
                found = evaluate(name, views, implementation="native")
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(17, 90), (90, 17)])
def test_every_output_is_written(
    draw, evaluate, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], dtype: torch.dtype, name: str
) -> None:
    views = draw(*shape, dtype)
    expected = evaluate(name, views, implementation="native")
    empty, empty_like, new_empty = torch.empty, torch.empty_like, Tensor.new_empty
    poison = torch.nan
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(poison))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(poison))
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(poison))
    found = evaluate(name, views, implementation="native")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
