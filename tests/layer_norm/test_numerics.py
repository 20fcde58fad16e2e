"""The native kernels against the float64 reference, with the error budget of the design."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import add_layer_norm

pytestmark = pytest.mark.native
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRIPLES = list(itertools.product(DTYPES, repeat=3))
WIDTHS = (1, 15, 16, 33, 64, 81, 192, 384, 1408)
OPTIONS = ("update_bias", "layer_scale", "drop_path")
CANARY = 77.0


@pytest.mark.parametrize("dtypes", TRIPLES, ids=str)
@pytest.mark.parametrize("options", [(), OPTIONS], ids=["plain", "factors"])
def test_dtypes(draw, hold, dtypes: tuple[torch.dtype, ...], options: tuple[str, ...]) -> None:
    hold(draw(3, 11, 81, dtypes=dtypes, options=options), "native")


@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, DTYPES)), ids=str)
def test_layer_norm_alone(draw, hold, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    hold(draw(3, 11, 81, dtypes=(torch.float32, *dtypes), add=False), "native")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", WIDTHS)
def test_widths(draw, hold, features: int, dtype: torch.dtype) -> None:
    for options in ((), OPTIONS):
        hold(draw(2, 5, features, dtypes=(dtype,) * 3, options=options), "native")
    hold(draw(2, 5, features, dtypes=(dtype,) * 3, add=False), "native")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "options", [names for n in range(4) for names in itertools.combinations(OPTIONS, n)], ids=str
)
def test_options(draw, hold, options: tuple[str, ...], stream: bool) -> None:
    for dtypes in ((torch.float32,) * 3, (torch.bfloat16, torch.float32, torch.bfloat16)):
        hold(draw(3, 4, 40, dtypes=dtypes, options=options, stream=stream), "native")


def test_many_rows(draw, hold) -> None:
    # Parts of 32 rows, the last one short; then more rows than 256 parts of 32 hold.
    hold(draw(1, 75, 48), "native")
    hold(draw(3, 2733, 16, dtypes=(torch.bfloat16,) * 3), "native")


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_common_offset_does_not_cancel(draw, hold, dtype: torch.dtype) -> None:
    hold(draw(2, 5, 384, dtypes=(dtype,) * 3, mean=1e3), "native")


def test_constant_rows(draw, hold) -> None:
    inputs = draw(2, 5, 384)
    inputs.residual.fill_(0.5)
    inputs.x.fill_(1.25)
    hold(inputs, "native")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("into", ["x", "residual"])
def test_what_is_not_finite_spoils_its_row_alone(draw, results, into: str, value: float) -> None:
    inputs = draw(2, 5, 40)
    getattr(inputs, into)[1, 2, 3] = value
    normalized, new, grad_residual, grad_weight, _, grad_x = results(inputs, "native")
    assert new[1, 2].isfinite().sum() == 39
    rows = torch.zeros(2, 5, dtype=torch.bool)
    rows[1, 2] = True
    for tensor in (normalized, grad_residual, grad_x):
        assert torch.equal(tensor.isnan().all(-1), rows)
        assert torch.equal(tensor.isnan().any(-1), rows)
    assert grad_weight.isnan().all()


def test_not_finite_gradients_reach_a_gradient_scaler(draw, results) -> None:
    inputs = draw(2, 5, 40)
    inputs.upstream[0][0, 1, 2] = torch.inf
    _, _, grad_residual, grad_weight, grad_bias, grad_x = results(inputs, "native")
    assert not grad_residual[0, 1].isfinite().any()
    assert not grad_x[0, 1].isfinite().any()
    assert grad_weight.isfinite().sum() == grad_bias.isfinite().sum() == 39


@pytest.mark.parametrize("options", [(), OPTIONS], ids=["plain", "factors"])
def test_same_bits_whatever_the_threads(draw, results, options: tuple[str, ...]) -> None:
    inputs = draw(4, 300, 96, options=options)
    expected = results(inputs, "native")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for found, true in zip(results(inputs, "native"), expected, strict=True):
                assert torch.equal(found, true)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtypes", [(d,) * 3 for d in DTYPES] + [(DTYPES[1], DTYPES[0], DTYPES[1])], ids=str)
@pytest.mark.parametrize("features", [1, 15, 33, 384])
def test_every_output_is_written_and_nothing_else(
    draw, monkeypatch: pytest.MonkeyPatch, features: int, dtypes: tuple[torch.dtype, ...]
) -> None:
    inputs = draw(2, 3, features, dtypes=dtypes, options=("drop_path",))
    rooms: list[Tensor] = []
    empty = torch.empty

    def poisoned(*shape: Any, dtype: torch.dtype) -> Tensor:
        wanted = empty(*shape, dtype=dtype, device="meta")
        room = torch.full((wanted.numel() + 32,), torch.nan, dtype=dtype)
        room[:16] = room[-16:] = CANARY
        rooms.append(room)
        return room[16:-16].view(wanted.shape)

    leaves = [tensor.requires_grad_() for tensor in (inputs.x, inputs.residual, inputs.weight, inputs.bias)]

    def everything() -> list[Tensor]:
        outputs = add_layer_norm(*leaves, **inputs.options, dtype=dtypes[2], implementation="native")
        return [*outputs, *torch.autograd.grad(outputs, leaves, inputs.upstream)]

    expected: Callable[[], list[Tensor]] | list[Tensor] = everything()
    monkeypatch.setattr(torch, "empty", poisoned)
    found = everything()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(rooms) == 7  # normalized, new_residual, mean, rstd; two gradients and the sums
    assert all((room[:16] == CANARY).all() and (room[-16:] == CANARY).all() for room in rooms)
    assert not any(room.isnan().any() for room in rooms)
