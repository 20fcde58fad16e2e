"""What `latent_prediction_loss` computes, accepts and refuses."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast import explain, latent_prediction_loss

KINDS = ("smooth_l1", "l1", "mse")
Pair = tuple[Tensor, Tensor]


@pytest.mark.parametrize("normalize_target", [True, False])
@pytest.mark.parametrize(
    ("kind", "beta"), [("smooth_l1", 1.0), ("smooth_l1", 0.5), ("smooth_l1", 0.0), ("l1", 1.0), ("mse", 1.0)]
)
@pytest.mark.parametrize("indexing", ["none", "per_mask", "shared"])
def test_reference_is_the_published_formula(
    draw,
    eager: Callable[..., Pair],
    oracle: Callable[..., Pair],
    kind: str,
    beta: float,
    indexing: str,
    normalize_target: bool,
) -> None:
    prediction, target, drawn = draw()
    index = {"none": None, "per_mask": drawn, "shared": drawn[:2]}[indexing]
    options = {"kind": kind, "beta": beta, "normalize_target": normalize_target}
    loss, gradient = oracle(prediction, target, index, **options)
    expected_loss, expected_gradient = eager(prediction.double(), target.double(), index, **options)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected_loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-15)


def test_prediction_row_reads_sample_p_mod_b() -> None:
    target = torch.arange(3.0).view(3, 1, 1).expand(3, 4, 2)  # sample b holds the value b
    prediction = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, 2.0]).view(6, 1, 1).expand(6, 4, 2)
    for implementation in ("auto", "reference"):
        loss = latent_prediction_loss(
            prediction, target, normalize_target=False, kind="mse", implementation=implementation
        )
        assert loss.item() == 0.0


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=pytest.mark.native), "reference"])
def test_nothing_to_compare_is_nan(implementation: str) -> None:
    prediction = torch.zeros(2, 0, 8, requires_grad=True)
    index = torch.zeros(2, 0, dtype=torch.int64)
    loss = latent_prediction_loss(prediction, torch.zeros(2, 5, 8), index, implementation=implementation)
    loss.backward()
    assert math.isnan(loss.item())
    assert math.isnan(torch.nn.functional.smooth_l1_loss(prediction, prediction.detach()).item())
    assert prediction.grad is not None
    assert prediction.grad.shape == (2, 0, 8)


def test_loss_is_a_float32_scalar(draw) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        prediction, target, index = draw(dtypes=(dtype, dtype))
        loss = latent_prediction_loss(prediction.requires_grad_(), target, index)
        assert (loss.dtype, loss.shape) == (torch.float32, ())
        loss.backward()
        assert prediction.grad.dtype == dtype


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=pytest.mark.native), "reference"])
def test_an_index_outside_the_target_is_named(implementation: str) -> None:
    prediction, target = torch.zeros(8, 44, 16), torch.zeros(4, 256, 16)
    index = torch.zeros(8, 44, dtype=torch.int64)
    for value in (300, 256, -1):
        index[2, 17], index[5, 3] = value, value
        with pytest.raises(ValueError, match="index") as caught:
            latent_prediction_loss(prediction, target, index, implementation=implementation)
        message = f"index: expected int64 [B, K] with values in [0, 256), got {value} at [2, 17]"
        assert str(caught.value) == message
    with pytest.raises(ValueError, match=r"got -1 at \[2, 17\]"):
        latent_prediction_loss(prediction, target.requires_grad_(), index)


@pytest.mark.native
def test_bad_arguments_are_named() -> None:
    p, t, i = torch.zeros(4, 3, 8), torch.zeros(2, 5, 8), torch.zeros(4, 3, dtype=torch.int64)
    for arguments, options, error, message in (
        (
            (p[0], t),
            {},
            ValueError,
            r"prediction: expected three dimensions \[batch, tokens, D\], got \[3, 8\]",
        ),
        ((p, t[0]), {}, ValueError, r"target: expected three dimensions \[batch, tokens, D\], got \[5, 8\]"),
        (
            (p.long(), t),
            {},
            TypeError,
            "prediction and target: expected floating-point dtypes, got torch.int64",
        ),
        ((p, t.cfloat()), {}, TypeError, "expected floating-point dtypes, got .* torch.complex64"),
        ((p, t[..., :7]), {}, ValueError, "target: expected D = 8 as in prediction, got 7"),
        ((p[:3], t), {}, ValueError, r"prediction: expected a multiple of B = 2 rows .*got 3"),
        ((p, t[:0]), {}, ValueError, r"prediction: expected a multiple of B = 0 rows"),
        ((p, t.to("meta")), {}, ValueError, "target: expected device cpu of prediction, got meta"),
        ((p, t[:, :2]), {}, ValueError, "prediction: expected at most N = 2 tokens without an index, got 3"),
        ((p, t, i.int()), {}, TypeError, "index: expected int64, got torch.int32"),
        ((p, t, i[:3]), {}, ValueError, r"index: expected int64 \[4, 3\] or \[2, 3\], got \[3, 3\]"),
        ((p, t, i[0]), {}, ValueError, r"index: expected int64 \[4, 3\] or \[2, 3\], got \[3\]"),
        ((p[:2], t, i), {}, ValueError, r"index: expected int64 \[2, 3\], got \[4, 3\]"),
        ((p, t, i.to("meta")), {}, ValueError, "index: expected device cpu of prediction, got meta"),
        ((p, t, i), {"kind": "huber"}, ValueError, "kind: expected one of smooth_l1, l1, mse, got 'huber'"),
        ((p, t, i), {"beta": -1.0}, ValueError, "beta: expected a finite number of at least 0, got -1.0"),
        ((p, t, i), {"beta": math.nan}, ValueError, "beta: expected a finite number of at least 0, got nan"),
        ((p, t, i), {"eps": math.inf}, ValueError, "eps: expected a finite number of at least 0, got inf"),
        ((p, t, i), {"implementation": "cuda"}, ValueError, "implementation: expected auto, .*got 'cuda'"),
        (
            (p.double(), t),
            {"implementation": "native"},
            RuntimeError,
            "native cannot serve latent_loss: prediction is",
        ),
    ):
        with pytest.raises(error, match=message):
            latent_prediction_loss(*arguments, **options)


@pytest.mark.native
def test_explain_checks_its_arguments(draw) -> None:
    prediction, target, index = draw()
    assert explain(latent_prediction_loss, prediction, target, index, kind="l1").chosen == "native"
    assert explain("latent_loss", prediction.double(), target, index).chosen == "reference"
    with pytest.raises(ValueError, match="kind: expected one of"):
        explain("latent_loss", prediction, target, index, kind="huber")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(draw, loss_and_gradient: Callable[..., Pair], dtype: torch.dtype) -> None:
    prediction, target, index = draw(dtypes=(dtype, torch.float32))
    expected = loss_and_gradient(prediction, target, index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_and_gradient(prediction, target, index)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
