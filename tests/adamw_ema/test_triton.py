"""The Triton kernels: compiled on a GPU, through Triton's interpreter on the CPU (see tests/conftest.py)."""

import math

import pytest
import torch
from torch import Tensor

from jepa_fast import AdamWEMA, adamw_ema_step_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bfloat16 is broken.
HALVES = (torch.float16, *((torch.bfloat16,) if DEVICE == "cuda" else ()))
DTYPES = (torch.float32, *HALVES)
SIZES = (0, 1, 7, 511, 512, 513, 8192, 9000)  # round the blocks of 512 and 128 and the chunk of 8192
CANARY = 77.0
NAMES = (
    "parameters",
    "gradients",
    "exp_avgs",
    "exp_avg_sqs",
    "steps",
    "teachers",
    "copies",
    "teacher_copies",
)


def draw(size: int, seed: int, dtype: torch.dtype = torch.float32, offset: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + size)
    return torch.randn(size + offset, generator=generator).mul_(0.02).to(DEVICE, dtype)[offset:]


def lists(
    gradient: torch.dtype, teacher: torch.dtype, copies: torch.dtype | None, offset: int = 0
) -> dict[str, list[Tensor | None]]:
    made: dict[str, list[Tensor | None]] = {name: [] for name in NAMES}
    for i, size in enumerate(SIZES):
        made["parameters"].append(draw(size, 0, offset=offset))
        made["gradients"].append(None if i == 3 else draw(size, 1, gradient, offset))
        made["exp_avgs"].append(draw(size, 2, offset=offset))
        made["exp_avg_sqs"].append(draw(size, 3, offset=offset).square())
        made["steps"].append(torch.tensor(float(i), device=DEVICE))
        made["teachers"].append(None if i == 4 else draw(size, 4, teacher, offset))
        made["copies"].append(None if copies is None or i == 5 else draw(size, 5, copies, offset))
        made["teacher_copies"].append(None if copies is None or i == 4 else draw(size, 6, copies, offset))
    return made


def held(ours: dict[str, list[Tensor | None]], true: dict[str, list[Tensor | None]]) -> None:
    for name in NAMES:
        for i, (a, b) in enumerate(zip(ours[name], true[name], strict=True)):
            if a is not None and b is not None:
                # Both round once per operation; the last bit of a root or of a coefficient may differ.
                tolerance = 4 * torch.finfo(a.dtype).eps
                message = f"{name}[{i}]"
                torch.testing.assert_close(
                    a, b, rtol=tolerance, atol=1e-8 if a.dtype == torch.float32 else 1e-6, msg=message
                )


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("copies", [None, *HALVES])
@pytest.mark.parametrize("teacher", DTYPES)
@pytest.mark.parametrize("gradient", DTYPES)
def test_agrees_with_the_reference(
    gradient: torch.dtype, teacher: torch.dtype, copies: torch.dtype | None, offset: int
) -> None:
    ours, true = (lists(gradient, teacher, copies, offset) for _ in range(2))
    for made, name in ((ours, "triton"), (true, "reference")):
        adamw_ema_step_(**made, lr=1e-3, weight_decay=0.1, momentum=0.9, implementation=name)  # type: ignore[arg-type]
    held(ours, true)


@pytest.mark.parametrize("max_norm", [0.05, 1e3, math.inf])
@pytest.mark.parametrize("gradient", DTYPES)
def test_clipping(gradient: torch.dtype, max_norm: float) -> None:
    ours, true = (lists(gradient, torch.float32, None) for _ in range(2))
    norms = [
        adamw_ema_step_(**made, lr=1e-3, max_norm=max_norm, implementation=name)  # type: ignore[arg-type]
        for made, name in ((ours, "triton"), (true, "reference"))
    ]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-6, atol=0)
    held(ours, true)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_skipped_step_writes_nothing(value: float) -> None:
    ours, before = (lists(torch.float32, torch.float32, torch.float16) for _ in range(2))
    for made in (ours, before):
        made["gradients"][-1][5] = value  # type: ignore[index]
    norm = adamw_ema_step_(**ours, lr=0.1, nonfinite="skip", implementation="triton")  # type: ignore[arg-type]
    assert norm is not None
    assert not norm.isfinite()
    for name in NAMES:
        for a, b in zip(ours[name], before[name], strict=True):
            assert a is b is None or torch.equal(a.nan_to_num(), b.nan_to_num())  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [1, 513, 3000])
@pytest.mark.parametrize("offset", [0, 1, 15])
def test_memory_around_the_tensors_is_untouched(size: int, offset: int) -> None:
    dtypes = [torch.float32] * 5 + [torch.float16] * 2
    rooms = [torch.full((size + 32,), CANARY, dtype=dtype, device=DEVICE) for dtype in dtypes]
    inner = [room[offset : offset + size] for room in rooms]
    for tensor in inner:
        tensor.fill_(0.5)
    parameter, gradient, exp_avg, exp_avg_sq, teacher, copy, teacher_copy = ([tensor] for tensor in inner)
    adamw_ema_step_(
        parameter, gradient, exp_avg, exp_avg_sq, [torch.zeros((), device=DEVICE)], lr=0.1, teachers=teacher,
        copies=copy, teacher_copies=teacher_copy, momentum=0.5, implementation="triton",
    )  # fmt: skip
    for room in rooms:
        assert (room[:offset] == CANARY).all()
        assert (room[offset + size :] == CANARY).all()
    for tensor in (parameter[0], exp_avg[0], exp_avg_sq[0], teacher[0]):
        assert (tensor == tensor[0]).all()
    assert torch.equal(copy[0], parameter[0].half())
    assert torch.equal(teacher_copy[0], teacher[0].half())


def test_the_optimizer_over_groups_buffers_and_changing_gradients() -> None:
    def run(name: str) -> list[Tensor]:
        trained = [torch.nn.Parameter(draw(size, 0)) for size in SIZES]
        counter, target = (
            torch.arange(9001, device=DEVICE),
            torch.zeros(9001, dtype=torch.int64, device=DEVICE),
        )
        teacher = [draw(size, 1) for size in SIZES]
        pairs = [*zip(teacher[:-1], trained[:-1], strict=True), (target, counter)]
        groups = [{"params": trained[:3], "weight_decay": 0.0}, {"params": trained[3:], "betas": (0.0, 0.9)}]
        optimizer = AdamWEMA(
            groups,
            lr=1e-2,
            teacher=pairs,
            copies=torch.float16,
            max_norm=0.1,
            nonfinite="skip",
            implementation=name,
        )
        for i in range(4):
            optimizer.param_groups[1]["lr"] = 1e-2 / (i + 1)
            for j, parameter in enumerate(trained):
                parameter.grad = None if i < 2 and j == 6 else draw(SIZES[j], 10 + i)
            if i == 2:
                trained[5].grad[0] = math.nan  # type: ignore[index]
            optimizer.step()
        assert optimizer.skipped_steps == 1
        assert optimizer.state[trained[5]]["step"] == 3
        assert optimizer.state[trained[6]]["step"] == 1
        assert torch.equal(target, counter)
        return [*trained, *teacher, *optimizer._copies.values()]

    for ours, true in zip(run("triton"), run("reference"), strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-5 if ours.dtype == torch.float32 else 1e-3, atol=1e-7)


@pytest.mark.parametrize("steps", [0, 1, 9, 10_000, 2_000_000])
def test_bias_correction_at_any_step(steps: int) -> None:
    def run(name: str) -> Tensor:
        parameter, state = draw(100, 0), [[draw(100, 2)], [draw(100, 3).square()]]
        count = torch.tensor(float(steps), device=DEVICE)
        adamw_ema_step_(
            [parameter], [draw(100, 1)], *state, [count], lr=1.0, betas=(0.9, 0.9999), implementation=name
        )
        assert count == steps + 1
        return parameter

    # 1 - beta^t in float32 would be off by 6e-4 of itself at the first step.
    torch.testing.assert_close(run("triton"), run("reference"), rtol=1e-6, atol=1e-7)


def test_mixed_dtypes_are_refused() -> None:
    given = lists(torch.float32, torch.float32, None)
    given["gradients"][2] = draw(SIZES[2], 1, torch.float16)
    with pytest.raises(
        RuntimeError, match="triton cannot serve adamw_ema: gradients are float32 and float16"
    ):
        adamw_ema_step_(**given, lr=1e-3, implementation="triton")  # type: ignore[arg-type]
