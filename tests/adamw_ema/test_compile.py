"""`adamw_ema_step_` inside `torch.compile`, and its registration."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from jepa_fast import AdamWEMA, adamw_ema_step_


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def lists() -> list[list[Tensor]]:
    shapes = [(3, 4), (17,)]
    return [[torch.full(shape, value) for shape in shapes] for value in (1.0, 0.5, 0.0, 0.0)] + [
        [torch.zeros(()) for _ in shapes]
    ]


def test_a_changing_rate_compiles_at_most_twice() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def step(given: list[list[Tensor]], teachers: list[Tensor | None], lr: float) -> Tensor:
        norm = adamw_ema_step_(*given, lr=lr, teachers=teachers, momentum=0.5, max_norm=1.0)
        assert norm is not None
        return norm * 2

    ours, expected = lists(), lists()
    teachers: list[Tensor | None] = [None, torch.zeros(17)]
    others: list[Tensor | None] = [None, torch.zeros(17)]
    for i in range(8):
        norm = step(ours, teachers, 0.1 + 0.01 * i)
        true = adamw_ema_step_(*expected, lr=0.1 + 0.01 * i, teachers=others, momentum=0.5, max_norm=1.0)
        assert true is not None
        torch.testing.assert_close(norm, true * 2)
    assert counter.frame_count <= 2  # once for the first value, once for any value
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert isinstance(teachers[1], Tensor)
    assert isinstance(others[1], Tensor)
    assert torch.equal(teachers[1], others[1])


def test_a_rate_in_a_tensor_compiles_once() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def step(given: list[list[Tensor]], lr: Tensor) -> Tensor:
        adamw_ema_step_(*given, lr=lr)
        return given[0][0].sum()

    ours, expected = lists(), lists()
    for rate in (0.5, 0.25, 0.0):
        total = step(ours, torch.tensor(rate))
        adamw_ema_step_(*expected, lr=rate)
        torch.testing.assert_close(total, expected[0][0].sum())
    assert counter.frame_count == 1


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_opcheck(nonfinite: str) -> None:
    parameters, gradients, exp_avgs, exp_avg_sqs, steps = lists()
    teachers, copies = [torch.zeros(3, 4)], [torch.zeros(17, dtype=torch.bfloat16)]
    masks = [0b0011111, 0b0101111]
    hyperparameters = torch.tensor([1e-3, 0.9, 0.999, 1e-8, 0.1, 0.99], dtype=torch.float64)
    torch.library.opcheck(
        torch.ops.jepa_fast.adamw_ema_step_.default,
        (parameters, gradients, exp_avgs, exp_avg_sqs, steps, teachers, copies, [], masks, hyperparameters, 1.0,
         nonfinite, "auto"),
    )  # fmt: skip


def test_the_optimizer_beside_a_compiled_model() -> None:
    def trained(make: type[torch.optim.Optimizer], compiled: bool) -> Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 4)
        optimizer = make(model.parameters(), lr=0.1)  # type: ignore[call-arg]

        def step(x: Tensor) -> None:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        run = torch.compile(step, backend="aot_eager") if compiled else step
        for _ in range(5):
            run(torch.randn(2, 4))
        return model.weight.detach()

    # torch.optim.AdamW as it comes: compiled, it would form beta^t in float32.
    ours, theirs = trained(AdamWEMA, compiled=True), trained(torch.optim.AdamW, compiled=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
