"""`AdamWEMA` goes where torch.optim.AdamW and a moving average after it go."""

import pytest
import torch
from torch import Tensor

from jepa_fast import AdamWEMA

SHAPES = [(33, 17), (5,), (300, 130), (1,), (2, 3, 4, 4), (40_001,), (0, 4)]
IMPLEMENTATIONS = (pytest.param("native", marks=pytest.mark.native), "reference")
MOMENTUM = 0.99


def drawn(seed: int, scale: float = 0.02) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * scale for shape in SHAPES]


def run_ours(name: str, steps: int, **options: object) -> tuple[list[Tensor], list[Tensor], AdamWEMA]:
    parameters = [torch.nn.Parameter(value) for value in drawn(0)]
    teacher = [value.clone() for value in drawn(0)]
    optimizer = AdamWEMA(
        parameters,
        lr=1e-3,
        weight_decay=0.05,
        teacher=teacher,
        momentum=MOMENTUM,
        implementation=name,
        **options,
    )  # type: ignore[arg-type]
    for i in range(steps):
        schedule(optimizer, i, steps)
        for parameter, gradient in zip(parameters, drawn(1 + i, 0.01), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [p.detach() for p in parameters], teacher, optimizer


def run_torch(dtype: torch.dtype, steps: int) -> tuple[list[Tensor], list[Tensor], torch.optim.AdamW]:
    parameters = [torch.nn.Parameter(value.to(dtype)) for value in drawn(0)]
    teacher = [value.to(dtype) for value in drawn(0)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    for i in range(steps):
        schedule(optimizer, i, steps)
        for parameter, gradient in zip(parameters, drawn(1 + i, 0.01), strict=True):
            parameter.grad = gradient.to(dtype)
        optimizer.step()
        torch._foreach_lerp_(teacher, [p.detach() for p in parameters], 1.0 - MOMENTUM)
    return [p.detach() for p in parameters], teacher, optimizer


def schedule(optimizer: torch.optim.Optimizer, i: int, steps: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * (i + 1) / steps
        group["weight_decay"] = 0.05 * (1 + i / steps)


def largest(values: list[Tensor], true: list[Tensor]) -> float:
    return max(
        (a.double() - b.double()).abs().max().item() for a, b in zip(values, true, strict=True) if a.numel()
    )


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_thousand_steps(name: str) -> None:
    ours, teacher, optimizer = run_ours(name, 1000)
    theirs, their_teacher, their_optimizer = run_torch(torch.float32, 1000)
    true, true_teacher, _ = run_torch(torch.float64, 1000)
    # PyTorch's square root is not always the nearest float, ours is: beyond that every operation is rounded alike,
    # so the moments, which no root enters, are the same bits.
    for parameter, other in zip(
        optimizer.param_groups[0]["params"], their_optimizer.param_groups[0]["params"], strict=True
    ):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimizer.state[parameter][key], their_optimizer.state[other][key])
    ulp = torch.finfo(torch.float32).eps * max(p.abs().max().item() for p in theirs if p.numel())
    assert largest(ours, theirs) <= 4 * ulp
    assert largest(teacher, their_teacher) <= 4 * ulp
    assert largest(ours, true) <= 1.25 * largest(theirs, true)
    assert largest(teacher, true_teacher) <= 1.25 * largest(their_teacher, true_teacher)


@pytest.mark.native
def test_native_is_deterministic() -> None:
    for a, b in zip(run_ours("native", 3)[0], run_ours("native", 3)[0], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_clipping_is_clip_grad_norm(name: str) -> None:
    ours = [torch.nn.Parameter(value) for value in drawn(0)]
    theirs = [torch.nn.Parameter(value.clone()) for value in drawn(0)]
    optimizer = AdamWEMA(ours, max_norm=0.5, implementation=name)
    expected = torch.optim.AdamW(theirs)
    for scale in (1e-4, 0.01, 3.0):  # the first is below the norm to clip to
        for a, b, gradient in zip(ours, theirs, drawn(3, scale), strict=True):
            a.grad, b.grad = gradient.clone(), gradient.clone()
        before = [p.grad.clone() for p in ours]
        norm = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        optimizer.step()
        expected.step()
        torch.testing.assert_close(optimizer.grad_norm, norm, rtol=1e-6, atol=0)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
        assert all(torch.equal(p.grad, kept) for p, kept in zip(ours, before, strict=True))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_gradient_accumulation(name: str) -> None:
    def trained(make: type[torch.optim.Optimizer], **options: object) -> Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(20, 10)
        optimizer = make(model.parameters(), lr=1e-2, **options)  # type: ignore[call-arg]
        for _ in range(5):
            for _ in range(3):
                model(torch.randn(4, 20)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.weight.detach()

    ours = trained(AdamWEMA, implementation=name)
    torch.testing.assert_close(ours, trained(torch.optim.AdamW), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_groups_have_their_own_numbers(name: str) -> None:
    def groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, object]]:
        return [
            {"params": parameters[:2], "lr": 1e-2, "weight_decay": 0.3, "betas": (0.8, 0.9)},
            {"params": parameters[2:], "eps": 1e-3},
        ]

    ours = [torch.nn.Parameter(value) for value in drawn(0)]
    theirs = [torch.nn.Parameter(value.clone()) for value in drawn(0)]
    teacher = [value.clone() for value in drawn(7)]
    optimizer = AdamWEMA(groups(ours), teacher=teacher, implementation=name)
    optimizer.param_groups[1]["momentum"] = 0.5
    expected = torch.optim.AdamW(groups(theirs))
    follower = [value.clone() for value in drawn(7)]
    for i in range(10):
        for a, b, gradient in zip(ours, theirs, drawn(10 + i), strict=True):
            a.grad, b.grad = gradient, gradient
        optimizer.step()
        expected.step()
        with torch.no_grad():
            torch._foreach_lerp_(follower[:2], theirs[:2], 1 - 0.996)
            torch._foreach_lerp_(follower[2:], theirs[2:], 0.5)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(teacher, follower, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_and_teacher_in_low_precision(name: str, dtype: torch.dtype) -> None:
    parameters = [torch.nn.Parameter(value) for value in drawn(0)]
    teacher = [value.to(dtype) for value in drawn(1)]
    exp_avgs, exp_avg_sqs = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    steps = [torch.zeros(()) for _ in parameters]
    gradients = [value.to(dtype) for value in drawn(2)]
    from jepa_fast import adamw_ema_step_

    adamw_ema_step_(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        steps,
        lr=1e-3,
        teachers=teacher,
        momentum=0.5,
        implementation=name,
    )
    same = [torch.nn.Parameter(value) for value in drawn(0)]
    for parameter, gradient in zip(same, gradients, strict=True):
        parameter.grad = gradient.float()
    torch.optim.AdamW(same, lr=1e-3).step()
    torch.testing.assert_close(parameters, same, rtol=1e-6, atol=1e-8)
    expected = [
        torch.lerp(t.to(dtype).float(), p.detach(), 0.5).to(dtype)
        for t, p in zip(drawn(1), parameters, strict=True)
    ]
    torch.testing.assert_close(teacher, expected, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_float64_is_served_by_the_reference() -> None:
    ours = [torch.nn.Parameter(value.double()) for value in drawn(0)]
    theirs = [torch.nn.Parameter(value.double()) for value in drawn(0)]
    optimizer, expected = AdamWEMA(ours, lr=1e-3), torch.optim.AdamW(theirs, lr=1e-3)
    for a, b, gradient in zip(ours, theirs, drawn(1), strict=True):
        a.grad, b.grad = gradient.double(), gradient.double()
    assert optimizer.explain().chosen == "reference"
    optimizer.step()
    expected.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-15, atol=0)
