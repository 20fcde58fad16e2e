"""`ema_update_` inside `torch.compile`, and its registration."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from jepa_fast import ema_update_


def tensors() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [torch.zeros(3, 4), torch.zeros(17)], [torch.ones(3, 4), torch.ones(17)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def test_changing_momentum_compiles_at_most_twice() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def step(targets: list[torch.Tensor], sources: list[torch.Tensor], momentum: float) -> None:
        ema_update_(targets, sources, momentum)

    targets, sources = tensors()
    expected = [target.clone() for target in targets]
    for i in range(12):
        momentum = 0.9 + 0.1 * i / 12
        step(targets, sources, momentum)
        ema_update_(expected, sources, momentum)
    assert counter.frame_count <= 2  # once for the first value, once for any value
    for ours, theirs in zip(targets, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_momentum_tensor_compiles_once() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def step(target: torch.Tensor, source: torch.Tensor, momentum: torch.Tensor) -> torch.Tensor:
        ema_update_([target], [source * 2], momentum)
        return target.sum()

    target, source, momentum = torch.zeros(8), torch.ones(8), torch.zeros(1)
    for value in (0.5, 0.25, 1.0):
        target.zero_()
        momentum.fill_(value)
        assert step(target, source, momentum).item() == 8 * 2 * (1 - value)
    assert counter.frame_count == 1


@pytest.mark.parametrize("momentum", [torch.tensor(0.5, dtype=torch.float64), torch.full((1,), 0.5)])
def test_opcheck(momentum: torch.Tensor) -> None:
    targets, sources = tensors()
    torch.library.opcheck(torch.ops.jepa_fast.ema_update_.default, (targets, sources, momentum, "auto"))
