"""What is refused, with one clear error and nothing changed, and what is left alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast import AdamWEMA, adamw_ema_step_, explain

IMPLEMENTATIONS = (pytest.param("native", marks=pytest.mark.native), "reference")


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (4,), (5,))]


@pytest.mark.parametrize(
    ("teacher", "error", "message"),
    [
        (
            lambda: [torch.ones(2, 3), torch.ones(4)],
            ValueError,
            "teacher: expected 3 entries, one per parameter .*got 2",
        ),
        (
            lambda: [torch.ones(2, 3), torch.ones(5), torch.ones(4)],
            ValueError,
            r"teacher\[1\] \(b\): expected shape \[4\] of its student, got \[5\]",
        ),
        (
            lambda: [torch.ones(2, 3), torch.ones(4), torch.ones(5, device="meta")],
            ValueError,
            r"teacher\[2\] \(c\): expected device cpu of its student, got meta",
        ),
        (
            lambda: [torch.ones(2, 3).cfloat(), None, None],
            TypeError,
            r"teacher\[0\] \(a\): expected real dtypes",
        ),
        (
            lambda: [torch.ones(2, 3).int(), None, None],
            TypeError,
            r"teacher\[0\] \(a\): expected a dtype that goes",
        ),
        (
            lambda: [3, None, None],
            TypeError,
            r"teacher\[0\]: expected a \(teacher, student\) pair of tensors, got int",
        ),
    ],
)
def test_a_teacher_that_does_not_match(
    teacher: Callable[[], list[Tensor]], error: type, message: str
) -> None:
    named = list(zip("abc", parameters(), strict=True))
    with pytest.raises(error, match=message):
        AdamWEMA(named, teacher=teacher())


def test_a_teacher_given_twice() -> None:
    a, b, _ = parameters()
    teacher = torch.ones(2, 3)
    other = torch.nn.Parameter(torch.ones(2, 3))
    with pytest.raises(
        ValueError, match=r"teacher\[1\]: expected another tensor, got one for the second time"
    ):
        AdamWEMA([a, other], teacher=[teacher, teacher])
    with pytest.raises(ValueError, match=r"teacher\[1\]: expected a student that no other teacher follows"):
        AdamWEMA([a, b], teacher=[(teacher, a), (teacher.clone(), a)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr: expected a number in \[0, inf\), got -1.0"),
        ({"lr": float("nan")}, r"lr: expected a number in"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]: expected a number in \[0, 1\), got 1.0"),
        ({"betas": (0.9,)}, "betas: expected two numbers"),
        ({"eps": -1e-8}, "eps: expected"),
        ({"weight_decay": -0.1}, "weight_decay: expected"),
        ({"momentum": 1.01}, r"momentum: expected a number in \[0, 1\], got 1.01"),
        ({"lr": torch.zeros(2)}, "lr: expected a number or one floating-point element"),
        ({"max_norm": 0.0}, "max_norm: expected a number above 0 or None, got 0.0"),
        ({"nonfinite": "ignore"}, "nonfinite: expected one of propagate, skip, raise, got 'ignore'"),
    ],
)
def test_numbers_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamWEMA(parameters(), **options)  # type: ignore[arg-type]


def test_a_number_that_goes_out_of_range_later() -> None:
    a, *_ = parameters()
    optimizer = AdamWEMA([a])
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 2.0
    with pytest.raises(ValueError, match="momentum: expected"):
        optimizer.step()


def test_unfit_parameters_and_copies() -> None:
    with pytest.raises(
        TypeError, match=r"params\[1\]: expected a real floating-point dtype, got torch.complex64"
    ):
        AdamWEMA([torch.ones(2), torch.ones(2, dtype=torch.complex64)])
    with pytest.raises(
        TypeError, match=r"copies: expected torch.bfloat16, torch.float16 or None, got torch.int8"
    ):
        AdamWEMA(parameters(), copies=torch.int8)
    optimizer = AdamWEMA(parameters())
    with pytest.raises(ValueError, match="amsgrad: expected False, got True"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "amsgrad": True})
    assert len(optimizer.param_groups) == 1
    optimizer.step()


def held(optimizer: AdamWEMA, tensors: list[Tensor]) -> list[Tensor]:
    state = [value for entries in optimizer.state.values() for value in entries.values()]
    return [tensor.detach().clone() for tensor in [*tensors, *state]]


@pytest.mark.parametrize("stepped", [False, True], ids=["first step", "later step"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_that_do_not_go_leave_the_state_alone(implementation: str, stepped: bool) -> None:
    trained = parameters()
    teacher = [torch.zeros_like(p, requires_grad=False) for p in trained]
    optimizer = AdamWEMA(trained, teacher=teacher, implementation=implementation)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    if stepped:
        optimizer.step()
    before = held(optimizer, [*trained, *teacher])
    indices = torch.tensor([[0, 2]])
    trained[1].grad = torch.sparse_coo_tensor(indices, torch.ones(2), (4,))
    with pytest.raises(TypeError, match=r"gradients\[1\]: expected a dense tensor, got torch.sparse_coo"):
        optimizer.step()
    assert all(map(torch.equal, before, held(optimizer, [*trained, *teacher])))
    assert len(before) == len(held(optimizer, [*trained, *teacher]))


@pytest.mark.parametrize("change", ["more", "fewer", "another"])
def test_a_parameter_list_that_changed(change: str) -> None:
    trained = parameters()
    optimizer = AdamWEMA(trained)
    optimizer.step()
    held = optimizer.param_groups[0]["params"]
    if change == "more":
        held.append(torch.nn.Parameter(torch.ones(2)))
    elif change == "fewer":
        held.pop()
    else:
        held[1] = torch.nn.Parameter(torch.ones(4))
    with pytest.raises(
        ValueError, match="params: expected the 3 parameters that the optimizer was given, got"
    ):
        optimizer.step()


def test_a_parameter_that_became_another_shape() -> None:
    (parameter,) = parameters()[:1]
    parameter.grad = torch.ones(2, 3)
    optimizer = AdamWEMA([parameter])
    optimizer.step()
    parameter.grad = None
    parameter.data = torch.ones(3, 2)
    with pytest.raises(
        ValueError, match=r"exp_avgs\[0\]: expected shape \[3, 2\] of parameters\[0\], got \[2, 3\]"
    ):
        optimizer.step()


def lists(count: int = 2) -> dict[str, list[Tensor]]:
    made = {name: [torch.ones(6) for _ in range(count)] for name in ("parameters", "gradients", "exp_avgs")}
    return made | {
        "exp_avg_sqs": [torch.ones(6) for _ in range(count)],
        "steps": [torch.zeros(()) for _ in range(count)],
    }


def test_lists_that_do_not_go_together() -> None:
    shared = torch.ones(9)
    for changed, error, message in (
        ({"steps": [torch.zeros(())]}, ValueError, "steps: expected 2 entries, one per parameter, got 1"),
        ({"steps": [torch.zeros(2)] * 2}, ValueError, r"steps\[0\]: expected one floating-point element"),
        (
            {"steps": [torch.zeros((), dtype=torch.int64)] * 2},
            ValueError,
            r"steps\[0\]: expected one floating-point",
        ),
        (
            {"exp_avgs": [torch.ones(6), None]},
            ValueError,
            r"exp_avgs\[1\]: expected a tensor, as gradients\[1\] is one",
        ),
        ({"gradients": [torch.ones(6), torch.ones(5)]}, ValueError, r"gradients\[1\]: expected shape \[6\]"),
        (
            {"gradients": [torch.ones(6).int(), None]},
            TypeError,
            r"gradients\[0\]: expected a real floating-point",
        ),
        (
            {"gradients": [torch.ones(6, device="meta"), None]},
            ValueError,
            r"gradients\[0\]: expected device cpu",
        ),
        ({"teachers": [torch.ones(6), torch.ones(3)]}, ValueError, r"teachers\[1\]: expected shape \[6\]"),
        ({"copies": [torch.ones(6).int(), None]}, TypeError, r"copies\[0\]: expected a floating-point dtype"),
        ({"teachers": [shared[:6], shared[3:]]}, ValueError, r"teachers\[1\]: expected memory of its own"),
    ):
        given = lists() | changed
        with pytest.raises(error, match=message):
            adamw_ema_step_(**given, lr=1e-3)
    same = lists()
    with pytest.raises(
        ValueError, match=r"parameters\[1\]: expected memory of its own, but it is shared with"
    ):
        adamw_ema_step_(**same | {"parameters": [same["parameters"][0]] * 2}, lr=1e-3)


@pytest.mark.native
def test_what_the_kernels_do_not_take_falls_to_the_reference() -> None:
    for changed, reason in (
        ({"parameters": [torch.ones(6).bfloat16()]}, "parameters[0] is torch.bfloat16; kernels take float32"),
        (
            {"exp_avgs": [torch.ones(12)[::2]]},
            "exp_avgs[0] does not fill memory without gaps in the order of parameters[0]",
        ),
        ({"gradients": [torch.ones(1).expand(6)]}, "gradients[0] does not fill memory without gaps"),
        ({"gradients": [torch.ones(6).double()]}, "gradients[0] is torch.float64; kernels take float32"),
    ):
        given = lists(1) | changed
        explanation = explain(adamw_ema_step_, **given)
        assert explanation.chosen == "reference"
        assert explanation.refusals["native"][0].startswith(reason)
        with pytest.raises(RuntimeError, match="native cannot serve adamw_ema"):
            adamw_ema_step_(**given, lr=1e-3, implementation="native")
        before = given["parameters"][0].clone()
        adamw_ema_step_(**given, lr=0.1)
        assert (given["parameters"][0] < before).all()


@pytest.mark.native
def test_dense_layouts_are_served_by_the_kernel() -> None:
    last = torch.channels_last
    parameter = torch.nn.Parameter(torch.randn(8, 3, 5, 5).to(memory_format=last))
    other = torch.nn.Parameter(parameter.detach().clone())
    teacher = torch.zeros(8, 3, 5, 5).to(memory_format=last)
    parameter.grad = torch.randn(8, 3, 5, 5).to(memory_format=last)
    other.grad = parameter.grad.clone()
    AdamWEMA([parameter], teacher=[teacher], momentum=0.5, implementation="native").step()
    torch.optim.AdamW([other]).step()
    torch.testing.assert_close(parameter, other)
    torch.testing.assert_close(teacher, other.detach() / 2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("count", [1, 15, 16, 17, 100_003])
def test_memory_around_the_tensors_is_untouched(implementation: str, count: int) -> None:
    rooms = [
        torch.full((count + 32,), 77.0, dtype=dtype) for dtype in [torch.float32] * 4 + [torch.bfloat16] * 3
    ]
    inner = [room[15 : 15 + count] for room in rooms]  # starts off every 16-byte boundary
    for tensor in inner:
        tensor.fill_(0.5)
    parameter, exp_avg, exp_avg_sq, gradient, teacher, copy, teacher_copy = ([tensor] for tensor in inner)
    adamw_ema_step_(
        parameter, gradient, exp_avg, exp_avg_sq, [torch.zeros(())], lr=0.1, teachers=teacher, copies=copy,
        teacher_copies=teacher_copy, momentum=0.5, implementation=implementation,
    )  # fmt: skip
    for room in rooms:
        assert (room[:15] == 77).all()
        assert (room[15 + count :] == 77).all()
    expected = torch.full((count,), 0.5, requires_grad=True)
    for tensor in (*parameter, *exp_avg, *exp_avg_sq, *teacher):
        assert (tensor == tensor[0]).all()
    assert torch.equal(copy[0], parameter[0].bfloat16())
    assert (parameter[0] != expected).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_to_do(implementation: str) -> None:
    adamw_ema_step_([], [], [], [], [], lr=0.1, implementation=implementation)
    empty = torch.nn.Parameter(torch.zeros(0, 3))
    empty.grad = torch.zeros(0, 3)
    optimizer = AdamWEMA([empty], teacher=[torch.zeros(0, 3)], max_norm=1.0, implementation=implementation)
    optimizer.step()
    assert optimizer.grad_norm == 0
    assert optimizer.state[empty]["step"] == 1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_not_finite_gradients_reach_the_parameters(implementation: str) -> None:
    parameter, teacher = torch.nn.Parameter(torch.ones(40)), torch.zeros(40)
    parameter.grad = torch.ones(40)
    parameter.grad[3], parameter.grad[33] = torch.nan, torch.inf
    AdamWEMA([parameter], teacher=[teacher], implementation=implementation).step()
    assert parameter[3].isnan()
    assert parameter[33].isnan()
    assert parameter.isnan().sum() == teacher.isnan().sum() == 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast_and_inference_mode_change_nothing(implementation: str) -> None:
    def stepped() -> Tensor:
        given = lists(1)
        adamw_ema_step_(**given, lr=0.1, implementation=implementation)
        return given["parameters"][0].clone()

    expected = stepped()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(stepped(), expected)
    with torch.inference_mode():
        assert torch.equal(stepped(), expected)
