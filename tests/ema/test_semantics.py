"""What `ema_update_` accepts, refuses and leaves alone."""

import math

import pytest
import torch

from jepa_fast import ema_update_, explain

IMPLEMENTATIONS = (pytest.param("native", marks=pytest.mark.native), "reference")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


def test_exact_at_both_ends(implementation: str) -> None:
    start, source = torch.randn(1000), torch.randn(1000)
    kept, replaced = start.clone(), start.clone()
    ema_update_([kept], [source], 1.0, implementation=implementation)
    ema_update_([replaced], [source], 0.0, implementation=implementation)
    assert torch.equal(kept, start)
    assert torch.equal(replaced, source)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_other_dtypes_are_copied(implementation: str, dtype: torch.dtype) -> None:
    target, source = torch.zeros(33, dtype=dtype), torch.randint(0, 2, (33,)).to(dtype)
    ema_update_([target], [source], 0.996, implementation=implementation)
    assert torch.equal(target, source)


def test_empty_lists_and_empty_tensors(implementation: str) -> None:
    ema_update_([], [], 0.5, implementation=implementation)
    targets = [torch.zeros(0, 3), torch.zeros(()), torch.zeros(2, 0, dtype=torch.int64)]
    ema_update_(targets, [torch.ones_like(t) for t in targets], 0.25, implementation=implementation)
    assert targets[1].item() == 0.75


def test_generators_and_parameters_are_accepted(implementation: str) -> None:
    teacher, student = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    expected = [0.9 * t + 0.1 * s for t, s in zip(teacher.parameters(), student.parameters(), strict=True)]
    ema_update_(teacher.parameters(), (p for p in student.parameters()), 0.9, implementation=implementation)
    for value, true in zip(teacher.parameters(), expected, strict=True):
        assert value.grad_fn is None
        torch.testing.assert_close(value, true)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100_003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_memory_around_a_target_is_untouched(implementation: str, count: int, dtype: torch.dtype) -> None:
    room = torch.full((count + 32,), 77, dtype=dtype)
    inner = slice(15, 15 + count)  # starts off every 16-byte boundary
    ema_update_([room[inner]], [torch.zeros(count, dtype=dtype)], 0.0, implementation=implementation)
    assert (room[inner] == 0).all()
    assert (room[:15] == 77).all()
    assert (room[15 + count :] == 77).all()


@pytest.mark.native
def test_dense_layouts_are_served_by_the_kernel() -> None:
    target = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    source = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    expected = torch.lerp(target, source, 0.25)
    ema_update_([target], [source], 0.75, implementation="native")
    assert torch.equal(target, expected)


@pytest.mark.native
@pytest.mark.parametrize("gaps_in", ["target", "source"])
def test_other_layouts_fall_to_the_reference(gaps_in: str) -> None:
    target, source = torch.randn(6, 4), torch.randn(6, 4)
    if gaps_in == "target":
        target = torch.randn(6, 8)[:, ::2]
    else:
        source = torch.randn(4, 6).t()
    expected = torch.lerp(target, source, 0.25)
    explanation = explain("ema", [target], [source], 0.75)
    assert explanation.chosen == "reference"
    reason = "targets[0] and sources[0] do not fill memory in the same order without gaps"
    assert explanation.refusals["native"] == [reason]
    with pytest.raises(
        RuntimeError, match=r"native cannot serve ema: targets\[0\] and sources.0. do not fill"
    ):
        ema_update_([target], [source], 0.75, implementation="native")
    ema_update_([target], [source], 0.75)
    assert torch.equal(target, expected)


def test_interleaved_views_of_one_tensor_are_accepted() -> None:
    columns = torch.zeros(5, 4)
    targets = [columns[:, 0::2], columns[:, 1::2]]
    ema_update_(targets, [torch.ones(5, 2), torch.full((5, 2), 2.0)], 0.5)
    assert torch.equal(columns, torch.tensor([0.5, 1.0, 0.5, 1.0]).expand(5, 4))


def test_float64_is_served_by_the_reference() -> None:
    target, source = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    ema_update_([target], [source], 0.9)
    assert torch.equal(target, torch.full((3,), 1 - 0.9, dtype=torch.float64))


def test_shared_memory_is_refused() -> None:
    x, y, z = torch.zeros(8), torch.zeros(8), torch.zeros(8)
    shared = "expected memory of its own, but it is shared with"
    for targets, sources, message in (
        ([x, x], [y, z], rf"targets\[1\]: {shared} targets\[0\]"),
        ([x[:5], x[4:]], [y[:5], y[4:]], rf"targets\[1\]: {shared} targets\[0\]"),
        ([x[::2], x[2:6]], [y[:4], y[4:]], rf"targets\[1\]: {shared} targets\[0\]"),
        ([x], [x], rf"targets\[0\]: {shared} sources\[0\]"),
        ([x[:4], y[:4]], [z[:4], x[2:6]], rf"targets\[0\]: {shared} sources\[1\]"),
        ([x[:1].expand(4)], [y[:4]], r"targets\[0\]: expected elements of their own"),
    ):
        with pytest.raises(ValueError, match=message):
            ema_update_(targets, sources, 0.5)
    ema_update_([x[:4], y[:4]], [z[:4], z[:4]], 0.5)  # two targets may follow one source


def test_mismatched_lists_are_refused() -> None:
    x = torch.zeros(2, 3)
    for targets, sources, error, message in (
        ([x], [], ValueError, "sources: expected 1 tensors, one per target, got 0"),
        ([x], [torch.zeros(3, 2)], ValueError, r"sources\[0\]: expected shape \[2, 3\] of .*got \[3, 2\]"),
        ([x], [x.to("meta")], ValueError, r"sources\[0\]: expected device cpu of targets\[0\], got meta"),
        ([x, x.to("meta")], [x + 1, x + 1], ValueError, r"targets\[1\]: expected device cpu"),
        ([x], [x.long()], TypeError, r"sources\[0\]: expected a floating-point dtype .*got torch.int64"),
        ([x.long()], [x.int()], TypeError, r"sources\[0\]: expected torch.int64 .*got torch.int32"),
        ([x.cfloat()], [x], TypeError, r"targets\[0\]: expected a real dtype, got torch.complex64"),
    ):
        with pytest.raises(error, match=message):
            ema_update_(targets, sources, 0.5)


@pytest.mark.parametrize("momentum", [-0.1, 1.0001, math.nan, math.inf, 2])
def test_momentum_out_of_range_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\], got"):
        ema_update_([torch.zeros(2)], [torch.ones(2)], momentum)


@pytest.mark.parametrize(
    "momentum", [torch.zeros(2), torch.zeros(1, dtype=torch.float64), torch.zeros(1, device="meta")]
)
def test_unfit_momentum_tensor_is_refused(momentum: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"momentum: expected "):
        ema_update_([torch.zeros(2)], [torch.ones(2)], momentum)


def test_autograd_notices_the_update(implementation: str) -> None:
    weight = torch.randn(4, requires_grad=True)
    loss = weight.square().sum()
    before = weight._version
    ema_update_([weight], [torch.randn(4)], 0.9, implementation=implementation)
    assert weight._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autocast_changes_nothing(implementation: str) -> None:
    target, source = torch.randn(100), torch.randn(100)
    expected = torch.lerp(target, source, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ema_update_([target], [source], 0.5, implementation=implementation)
    assert torch.equal(target, expected)


def test_inference_tensors_are_updated(implementation: str) -> None:
    with torch.inference_mode():
        target = torch.zeros(4)
        ema_update_([target], [torch.ones(4)], 0.75, implementation=implementation)
        assert (target == 0.25).all()
