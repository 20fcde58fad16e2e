"""What only a GPU can show of `AdamWEMA`; test_triton.py runs its numerics there, too."""

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from jepa_fast import AdamWEMA, explain

pytestmark = pytest.mark.gpu


def model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 130), torch.nn.GELU(), torch.nn.Linear(130, 33)).cuda()


def backward(student: torch.nn.Module, x: Tensor) -> None:
    student(x).square().mean().backward()


def test_agrees_with_the_fused_optimizer() -> None:
    ours, theirs, teacher, follower = model(), model(), model(), model()
    optimizer = AdamWEMA(
        ours.parameters(), lr=1e-3, teacher=teacher.parameters(), copies=torch.bfloat16, max_norm=0.1
    )
    other = torch.optim.AdamW(theirs.parameters(), lr=1e-3, fused=True)
    for i in range(200):
        torch.manual_seed(i)
        gradients = [torch.randn_like(p) * 0.01 for p in theirs.parameters()]
        for a, b, gradient in zip(ours.parameters(), theirs.parameters(), gradients, strict=True):
            a.grad, b.grad = gradient.clone(), gradient
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        optimizer.step()
        other.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(follower.parameters()), list(theirs.parameters()), 1 - 0.996)
    assert explain("adamw_ema", optimizer).chosen == "triton"
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(list(teacher.parameters()), list(follower.parameters()), rtol=1e-5, atol=1e-6)
    for tensor in (*ours.parameters(), *teacher.parameters()):
        assert torch.equal(optimizer.copy_of(tensor), tensor.detach().bfloat16())


def test_two_launches_and_no_wait() -> None:
    student, teacher = model(), model()
    optimizer = AdamWEMA(student.parameters(), teacher=teacher.parameters(), copies=torch.bfloat16)
    backward(student, torch.randn(8, 64, device="cuda"))
    optimizer.step()  # lays the table out and compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    kernels = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert [event.name for event in kernels] == ["prepare_kernel", "adamw_ema_kernel"]


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_a_captured_step_follows_schedules_and_gradients(nonfinite: str) -> None:
    student, teacher, other, follower = model(), model(), model(), model()
    optimizer = AdamWEMA(
        student.parameters(), lr=1e-3, teacher=teacher.parameters(), max_norm=1.0, nonfinite=nonfinite
    )
    expected = AdamWEMA(
        other.parameters(), lr=1e-3, teacher=follower.parameters(), max_norm=1.0, nonfinite=nonfinite,
        implementation="reference",
    )  # fmt: skip
    x = torch.randn(8, 64, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            for network, step in ((student, optimizer), (other, expected)):
                step.zero_grad()
                backward(network, x)
                step.step()
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # gradients are made in the graph's own memory
        backward(student, x)
        optimizer.step()
    for i in range(5):
        x.normal_()
        if i == 3 and nonfinite == "skip":
            x[0, 0] = torch.nan
        for step in (optimizer, expected):
            step.param_groups[0]["lr"] = 1e-3 * (i + 1)
            step.param_groups[0]["momentum"] = 0.9 + 0.01 * i
        optimizer.upload_hyperparameters()
        graph.replay()
        expected.zero_grad()
        backward(other, x)
        expected.step()
    torch.testing.assert_close(list(student.parameters()), list(other.parameters()), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(list(teacher.parameters()), list(follower.parameters()), rtol=1e-4, atol=1e-6)
    steps = optimizer.state[next(student.parameters())]["step"]
    assert steps == (7 if nonfinite == "skip" else 8)


def test_a_rate_in_device_memory_is_read_by_replays() -> None:
    parameter, lr = torch.nn.Parameter(torch.ones(1000, device="cuda")), torch.zeros((), device="cuda")
    parameter.grad = torch.ones(1000, device="cuda")
    optimizer = AdamWEMA([parameter], lr=lr)
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    graph.replay()
    assert (parameter == 1).all()
    lr.fill_(0.5)
    graph.replay()
    assert (parameter < 1).all()


def test_a_capture_cannot_raise() -> None:
    parameter = torch.nn.Parameter(torch.ones(1000, device="cuda"))
    optimizer = AdamWEMA([parameter], nonfinite="raise")
    parameter.grad = torch.ones(1000, device="cuda")
    optimizer.step()
    message = "nonfinite: expected propagate or skip in a captured CUDA graph"
    with pytest.raises(RuntimeError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


def test_state_of_torch_moves_to_the_device() -> None:
    ours, theirs = model(), model()
    optimizer, other = AdamWEMA(ours.parameters()), torch.optim.AdamW(theirs.parameters())
    x = torch.randn(8, 64, device="cuda")
    backward(theirs, x)
    other.step()  # its step counts are on the CPU
    ours.load_state_dict(theirs.state_dict())
    optimizer.load_state_dict(other.state_dict())
    for network, step in ((ours, optimizer), (theirs, other)):
        step.zero_grad()
        backward(network, x)
        step.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-5, atol=1e-6)
    other.load_state_dict(optimizer.state_dict())
    backward(theirs, x)
    other.step()
    assert other.state[next(theirs.parameters())]["step"].item() == 3


def test_runs_on_the_current_stream() -> None:
    parameter = torch.nn.Parameter(torch.ones(1000, device="cuda"))
    parameter.grad = torch.zeros(1000, device="cuda")
    optimizer = AdamWEMA([parameter], lr=0.1, weight_decay=0.0)
    optimizer.step()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # a kernel on another stream would overtake the addition
        parameter.grad.add_(1)
        optimizer.step()
    stream.synchronize()
    assert (parameter < 1).all()
