"""What `AdamWEMA` does besides the arithmetic: teacher, copies, state, skipped steps."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jepa_fast import AdamWEMA, explain
from jepa_fast.training.checkpoint import load_checkpoint, save_checkpoint

IMPLEMENTATIONS = (pytest.param("native", marks=pytest.mark.native), "reference")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


def model(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 9), torch.nn.Linear(9, 4, bias=False)
    )


def backward(student: torch.nn.Module, seed: int) -> None:
    student.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    student(torch.randn(8, 6, generator=generator)).square().mean().backward()


def snapshot(optimizer: AdamWEMA, *modules: torch.nn.Module) -> list[Tensor]:
    held = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    held += [t for state in optimizer.state.values() for t in state.values()] + list(
        optimizer._copies.values()
    )
    return [tensor.detach().clone() for tensor in held]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_a_parameter_without_gradient_is_not_stepped_but_followed(implementation: str) -> None:
    stepped, still = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    teacher = [torch.zeros(3), torch.zeros(3)]
    optimizer = AdamWEMA(
        [stepped, still], teacher=teacher, momentum=0.75, copies=torch.float16, implementation=implementation
    )
    stepped.grad = torch.ones(3)
    optimizer.step()
    assert (still == 1).all()
    assert still not in optimizer.state
    assert (teacher[1] == 0.25).all()
    assert (optimizer.copy_of(teacher[1]) == 0.25).all()
    torch.testing.assert_close(teacher[0], 0.25 * stepped.detach())
    still.grad, stepped.grad = torch.ones(3), None
    optimizer.step()
    assert optimizer.state[still]["step"] == 1
    assert optimizer.state[stepped]["step"] == 1
    assert (still < 1).all()


@pytest.mark.parametrize("form", ["list", "mapping", "pairs", "groups"])
def test_forms_of_the_teacher(implementation: str, form: str) -> None:
    student, teacher = model(), model(1)
    a, b = list(student.parameters()), list(teacher.parameters())
    expected = [value.detach().clone() for value in b]
    students: object = a
    given: object = {
        "list": [*b[:-1], None],
        "mapping": dict(zip(a[:-1], b, strict=False)),
        "pairs": list(zip(b[:-1], a, strict=False)),
        "groups": None,
    }[form]
    if form == "groups":
        students = [{"params": a[:2], "teacher": b[:2]}, {"params": a[2:], "teacher": [*b[2:-1], None]}]
    optimizer = AdamWEMA(students, lr=1e-2, teacher=given, momentum=0.9, implementation=implementation)  # type: ignore[arg-type]
    backward(student, 0)
    optimizer.step()
    for value, start, new in zip(b[:-1], expected, a, strict=False):
        torch.testing.assert_close(value.detach(), torch.lerp(start, new.detach(), 1.0 - 0.9))
    assert torch.equal(b[-1], expected[-1])


def test_buffers_and_frozen_parameters_in_pairs(implementation: str) -> None:
    student, teacher = model(), model(1)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    trained = list(student.parameters())
    student[0].weight.requires_grad_(False)
    mine = [*student.parameters(), *student.buffers()]
    theirs = [*teacher.parameters(), *teacher.buffers()]
    start = [value.clone() for value in theirs]
    optimizer = AdamWEMA(
        trained[1:], teacher=zip(theirs, mine, strict=True), momentum=0.5, copies=torch.bfloat16,
        implementation=implementation,
    )  # fmt: skip
    backward(student, 0)
    optimizer.step()
    for value, before, new in zip(theirs, start, mine, strict=True):
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.lerp(before, new.detach(), 0.5))
            assert torch.equal(optimizer.copy_of(value), value.bfloat16())
        else:
            assert torch.equal(value, new)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_copies_are_the_rounded_originals(implementation: str, dtype: torch.dtype) -> None:
    student, teacher = model(), model(1)
    optimizer = AdamWEMA(
        student.parameters(), teacher=teacher.parameters(), copies=dtype, implementation=implementation
    )
    held = [*student.parameters(), *teacher.parameters()]
    copies = [optimizer.copy_of(tensor) for tensor in held]
    for i in range(3):
        backward(student, i)
        optimizer.step()
        assert same([c.clone() for c in copies], [t.detach().to(dtype) for t in held])
    with torch.no_grad():
        held[0].add_(1)
    optimizer.refresh_copies()
    assert torch.equal(copies[0], held[0].detach().to(dtype))
    with pytest.raises(KeyError, match="copy_of: expected a parameter or teacher"):
        optimizer.copy_of(torch.zeros(2))


def test_a_teacher_in_the_dtype_of_the_copies_is_its_own(implementation: str) -> None:
    student = torch.nn.Parameter(torch.ones(20))
    teacher = torch.zeros(20, dtype=torch.bfloat16)
    optimizer = AdamWEMA(
        [student], teacher=[teacher], momentum=0.5, copies=torch.bfloat16, implementation=implementation
    )
    assert optimizer.copy_of(teacher) is teacher
    optimizer.step()
    assert (teacher == 0.5).all()


@pytest.mark.parametrize("direction", ["to torch", "from torch"])
def test_state_goes_both_ways(implementation: str, direction: str) -> None:
    ours, theirs = model(), model()

    # Separate groups with options of their own, one parameter that never had a gradient.
    def groups(student: torch.nn.Module) -> list[dict[str, object]]:
        a = list(student.parameters())
        return [{"params": a[:2], "lr": 1e-2}, {"params": a[2:], "weight_decay": 0.5}]

    mine = AdamWEMA(groups(ours), implementation=implementation)
    other = torch.optim.AdamW(groups(theirs))
    source, target = (
        ((mine, ours), (other, theirs)) if direction == "to torch" else ((other, theirs), (mine, ours))
    )
    for i in range(3):
        backward(source[1], i)
        next(source[1].parameters()).grad = None
        source[0].step()
    state = source[0].state_dict()
    assert set(state["state"][1]) == {"step", "exp_avg", "exp_avg_sq"}
    assert 0 not in state["state"]
    target[1].load_state_dict(source[1].state_dict())
    target[0].load_state_dict(copy.deepcopy(state))
    assert [group["lr"] for group in target[0].param_groups] == [1e-2, 1e-3]
    for i in range(3, 6):
        for optimizer, student in (source, target):
            backward(student, i)
            optimizer.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-5, atol=1e-7)
    assert mine.param_groups[0]["momentum"] == 0.996


def test_state_survives_a_checkpoint_bit_for_bit(implementation: str, tmp_path: Path) -> None:
    def start() -> tuple[torch.nn.Module, torch.nn.Module, AdamWEMA]:
        student, teacher = model(), model()
        return (
            student,
            teacher,
            AdamWEMA(
                student.parameters(),
                teacher=teacher.parameters(),
                copies=torch.bfloat16,
                implementation=implementation,
            ),
        )

    student, teacher, optimizer = start()
    for i in range(4):
        backward(student, i)
        optimizer.step()
        if i == 1:
            parts = {
                "student": student.state_dict(),
                "teacher": teacher.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            save_checkpoint(tmp_path / "step.safetensors", parts)
    resumed, resumed_teacher, again = start()
    state = load_checkpoint(tmp_path / "step.safetensors")
    resumed.load_state_dict(state["student"])
    resumed_teacher.load_state_dict(state["teacher"])
    again.load_state_dict(state["optimizer"])
    again.refresh_copies()
    for i in (2, 3):
        backward(resumed, i)
        again.step()
    assert same(snapshot(optimizer, student, teacher), snapshot(again, resumed, resumed_teacher))


def test_unfit_state_is_refused_and_nothing_changes() -> None:
    student = model()
    optimizer = AdamWEMA(student.parameters())
    backward(student, 0)
    optimizer.step()
    before = snapshot(optimizer, student)
    for options in ({"amsgrad": True}, {"maximize": True}):
        foreign = torch.optim.AdamW(model().parameters(), **options)
        name = next(iter(options))
        with pytest.raises(ValueError, match=rf"param_groups\[0\]: expected {name}=False, got True"):
            optimizer.load_state_dict(foreign.state_dict())
    with pytest.raises(ValueError, match="decoupled_weight_decay=True, got False"):
        optimizer.load_state_dict(torch.optim.Adam(model().parameters()).state_dict())
    assert same(before, snapshot(optimizer, student))


def test_a_deep_copy_goes_on_by_itself(implementation: str) -> None:
    student, teacher = model(), model()
    optimizer = AdamWEMA(student.parameters(), teacher=teacher.parameters(), implementation=implementation)
    backward(student, 0)
    optimizer.step()
    student_2, teacher_2, optimizer_2 = copy.deepcopy((student, teacher, optimizer))
    before = snapshot(optimizer, student, teacher)
    backward(student_2, 1)
    optimizer_2.step()
    assert same(before, snapshot(optimizer, student, teacher))
    backward(student, 1)
    optimizer.step()
    assert same(snapshot(optimizer_2, student_2, teacher_2), snapshot(optimizer, student, teacher))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_with_gradients_that_are_not_finite(implementation: str, value: float) -> None:
    student, teacher = model(), model()
    optimizer = AdamWEMA(
        student.parameters(), teacher=teacher.parameters(), max_norm=1.0, nonfinite="skip", copies=torch.float16,
        implementation=implementation,
    )  # fmt: skip
    backward(student, 0)
    optimizer.step()
    backward(student, 1)
    student[2].weight.grad[1, 2] = value
    before = snapshot(optimizer, student, teacher)
    optimizer.step()
    assert same(before, snapshot(optimizer, student, teacher))
    assert optimizer.skipped_steps == 1
    assert not optimizer.grad_norm.isfinite()
    optimizer.nonfinite = "raise"
    with pytest.raises(
        RuntimeError, match=r"gradients\[4\]: expected finite values, got .* nothing was updated"
    ):
        optimizer.step()
    assert same(before, snapshot(optimizer, student, teacher))
    optimizer.nonfinite = "propagate"
    optimizer.step()
    assert student[2].weight.isnan().any()


def test_norm_is_there_without_clipping(implementation: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(100_000))
    parameter.grad = torch.full((100_000,), 0.01)
    optimizer = AdamWEMA([parameter], nonfinite="skip", implementation=implementation)
    assert optimizer.grad_norm is None
    optimizer.step()
    torch.testing.assert_close(optimizer.grad_norm, torch.tensor(0.01 * 100_000**0.5), rtol=1e-6, atol=0)
    assert optimizer.skipped_steps == 0


def test_a_group_added_later(implementation: str) -> None:
    first, second = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    teachers = [torch.zeros(5), torch.zeros(5)]
    optimizer = AdamWEMA([first], teacher=teachers[:1], momentum=0.5, implementation=implementation)
    first.grad, second.grad = torch.ones(5), torch.ones(5)
    optimizer.step()
    optimizer.add_param_group({"params": [second], "lr": 0.0, "teacher": teachers[1:], "momentum": 0.75})
    optimizer.step()
    assert optimizer.state[first]["step"] == 2
    assert optimizer.state[second]["step"] == 1
    assert (teachers[1] == 0.25).all()


def test_moved_and_replaced_memory_is_found(implementation: str) -> None:
    parameter, teacher = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.zeros(5))
    optimizer = AdamWEMA([parameter], lr=0.0, teacher=[teacher], momentum=0.5, implementation=implementation)
    parameter.grad = torch.ones(5)
    optimizer.step()
    parameter.data, teacher.data = torch.full((5,), 4.0), torch.full((5,), 2.0)
    optimizer.step()
    assert (parameter == 4).all()
    assert (teacher == 3).all()


def test_tensor_hyperparameters_and_schedulers(implementation: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(5))
    teacher = torch.zeros(5)
    momentum, lr = torch.tensor(0.5), torch.tensor(0.0)
    optimizer = AdamWEMA(
        [parameter], lr=lr, teacher=[teacher], momentum=momentum, implementation=implementation
    )
    parameter.grad = torch.ones(5)
    optimizer.step()
    assert (parameter == 1).all()
    assert (teacher == 0.5).all()
    momentum.fill_(1.0)
    lr.fill_(0.125)
    optimizer.step()
    assert (parameter < 1).all()
    assert (teacher == 0.5).all()
    scheduled = AdamWEMA([parameter], lr=0.1, implementation=implementation)
    scheduler = torch.optim.lr_scheduler.StepLR(scheduled, 1, gamma=0.0)
    scheduled.step()
    scheduler.step()
    kept = parameter.detach().clone()
    scheduled.step()
    assert torch.equal(parameter, kept)


def test_closure_and_autograd(implementation: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(5))
    optimizer = AdamWEMA([parameter], implementation=implementation)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 5.0
    loss = parameter.square().sum()
    parameter.grad = torch.ones(5)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_grad_scaler_drives_it() -> None:
    parameter = torch.nn.Parameter(torch.ones(5))
    optimizer = AdamWEMA([parameter], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, math.inf):
        before = parameter.detach().clone()
        optimizer.zero_grad()
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, parameter) is math.isinf(factor)


@pytest.mark.native
def test_explain_takes_an_optimizer() -> None:
    student = model()
    optimizer = AdamWEMA(student.parameters())
    backward(student, 0)
    assert explain(AdamWEMA, optimizer).chosen == "native"
    assert explain("adamw_ema", optimizer).chosen == "native"
