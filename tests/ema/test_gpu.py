"""What only a GPU can show of `ema_update_`; test_triton.py runs its numerics there, too."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from jepa_fast import ema_update_, explain

pytestmark = pytest.mark.gpu
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def lists(
    dtype: torch.dtype = torch.float32, count: int = 50
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    shapes = [(64 + i, 33) for i in range(count)]
    return (
        [torch.randn(shape, device="cuda").to(dtype) for shape in shapes],
        [torch.randn(shape, device="cuda").to(dtype) for shape in shapes],
    )


def expected(targets: list[torch.Tensor], sources: list[torch.Tensor], momentum: float) -> list[torch.Tensor]:
    return [
        (momentum * t.double() + (1 - momentum) * s.double()).to(t.dtype)
        for t, s in zip(targets, sources, strict=True)
    ]


def close(found: list[torch.Tensor], true: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found, true, rtol=2 * torch.finfo(true[0].dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_is_chosen_and_agrees(dtype: torch.dtype) -> None:
    targets, sources = lists(dtype)
    assert explain("ema", targets, sources, 0.9).chosen == "triton"
    true = expected(targets, sources, 0.9)
    ema_update_(targets, sources, 0.9)
    close(targets, true)


def test_one_launch_for_the_whole_list() -> None:
    targets, sources = lists()
    ema_update_(targets, sources, 0.9)  # lays the table out and compiles
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        ema_update_(targets, sources, 0.9)
        torch.cuda.synchronize()
    kernels = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert [event.name for event in kernels] == ["ema_update_kernel"]


def test_runs_on_the_current_stream() -> None:
    targets, sources = lists()
    true = expected(targets, [source + 1 for source in sources], 0.5)
    ema_update_([t.clone() for t in targets], sources, 0.5)  # compiles
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # a kernel on another stream would overtake the addition
        for source in sources:
            source.add_(1)
        ema_update_(targets, sources, 0.5)
    stream.synchronize()
    close(targets, true)


def test_captured_graph_reads_inputs_and_momentum_anew() -> None:
    targets, sources = lists()
    momentum = torch.full((1,), 0.5, device="cuda")
    ema_update_(targets, sources, momentum)  # lays the table out and compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ema_update_(targets, sources, momentum)
    for value in (0.25, 0.996):
        for source in sources:
            source.normal_()
        momentum.fill_(value)
        true = expected(targets, sources, momentum.item())
        graph.replay()
        close(targets, true)


def test_another_device_than_the_sources_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sources\[0\]: expected device cuda:0 of targets\[0\], got cpu"):
        ema_update_([torch.zeros(2, device="cuda:0")], [torch.zeros(2)], 0.5)
    with pytest.raises(ValueError, match="momentum: expected device cuda:0 of the targets, got cpu"):
        ema_update_([torch.zeros(2, device="cuda:0")], [torch.zeros(2, device="cuda:0")], torch.zeros(1))
