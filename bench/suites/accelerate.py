"""Other code bases before and after one line: `optimize_(model)`, or `patch_functions_()`.

transformers' V-JEPA 2 is the installed library itself. lightly's SIGReg and its teacher update are stand-ins of the
same attributes and order of operators, unless lightly is installed.
"""

import copy
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import jepa_fast
from jepa_fast import models
from jepa_fast.accelerate import library_functions
from jepa_fast.bench.baselines import accelerate as standins
from jepa_fast.bench.measure import Case, ErrorCheck, Trial, check_error

SEED = 3
MOMENTUM = 0.996
# ViT-S, clips of 16 frames of 128 x 128: 8 x 8 x 8 tokens. Of V-JEPA 2's mask set A a quarter is context, 46 % target.
TOKENS, CONTEXT, TARGET = 512, 127, 238
BATCH_SIZE = 2


def cases() -> Iterator[Case]:
    for dtype in ("bfloat16", "bfloat16 autocast", "float32"):
        yield Case(
            op="optimize_",
            shape=f"transformers VJEPA2 ViT-S step, B={BATCH_SIZE} N={TOKENS}",
            dtype=dtype,
            build=partial(_vjepa2, dtype),
            quick=dtype == "bfloat16 autocast",
            by_products=True,
            needs="transformers",
        )
    yield Case("optimize_", "lightly SIGReg fwd+bwd, N=2048 D=128 M=1024", "float32", _sigreg)
    yield Case(
        "patch_functions_", "lightly update_momentum, 16-head ViT-B I-JEPA", "float32", _update_momentum
    )


def _vjepa2(dtype: str, device: torch.device) -> Trial:
    from transformers import VJEPA2Config, VJEPA2Model

    torch.manual_seed(0)
    config = VJEPA2Config(
        crop_size=128,
        frames_per_clip=16,
        hidden_size=384,
        num_attention_heads=6,
        num_hidden_layers=12,
        pred_zero_init_mask_tokens=False,
    )
    exact = VJEPA2Model(config).train().to(device)
    random = torch.Generator().manual_seed(1)
    clips = torch.randn(BATCH_SIZE, 16, 3, 128, 128, generator=random).to(device)
    order = torch.stack([torch.randperm(TOKENS, generator=random) for _ in range(BATCH_SIZE)]).to(device)
    masks = [order[:, :CONTEXT]], [order[:, CONTEXT : CONTEXT + TARGET]]
    if dtype == "bfloat16":
        exact.to(torch.bfloat16)
    theirs, ours = exact, copy.deepcopy(exact)
    jepa_fast.optimize_(ours)
    step = partial(_step, clips=clips, masks=masks, autocast=dtype == "bfloat16 autocast")
    return Trial(
        ours=partial(step, ours),
        check=partial(_check_step, theirs, ours, step),
        implementation="jepa_fast",
        baselines={"transformers": partial(step, theirs)},
    )


def _step(model: nn.Module, clips: Tensor, masks: Any, autocast: bool) -> Tensor:
    """Forward, the L1 loss of the predictions, backward."""
    parameter = next(model.parameters())
    model.zero_grad()
    with torch.autocast(clips.device.type, torch.bfloat16, enabled=autocast):
        found = model(clips.to(parameter.dtype), context_mask=masks[0], target_mask=masks[1]).predictor_output
        loss = (found.last_hidden_state - found.target_hidden_state.detach()).abs().float().mean()
    loss.backward()
    return loss.detach()


def _check_step(theirs: nn.Module, ours: nn.Module, step: partial[Tensor]) -> ErrorCheck:
    """Loss and all gradients as one vector, against float32, or float64 for float32."""
    parameter = next(theirs.parameters())
    in_float32 = parameter.dtype == torch.float32 and not step.keywords["autocast"]
    wide = copy.deepcopy(theirs).to(torch.float64 if in_float32 else torch.float32)

    def outcome(model: nn.Module, **options: Any) -> list[Tensor]:
        loss = step(model, **options)
        return [
            loss.reshape(1),
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]),
        ]

    exact = outcome(wide, autocast=False)
    return check_error(outcome(ours), outcome(theirs), exact)


def _sigreg(device: torch.device) -> Trial:
    try:
        module = importlib.import_module("lightly.loss.lejepa_loss").SIGReg()
    except ImportError:
        module = standins.SIGReg()
    theirs = module.to(device)
    ours = copy.deepcopy(theirs)
    jepa_fast.optimize_(ours)
    x = torch.randn(2048, 128, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()

    def run(loss_of: nn.Module, at: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(SEED)
        loss = loss_of(at)
        return loss.detach(), torch.autograd.grad(loss, at)[0]

    def check() -> ErrorCheck:
        torch.manual_seed(SEED)
        directions = torch.randn(128, 1024, device=device)
        wide = x.detach().double().requires_grad_()
        unit = (directions / directions.norm(p=2, dim=0)).double()
        loss = jepa_fast.sigreg_loss(wide, directions=unit, implementation="reference")
        exact = (loss.detach(), torch.autograd.grad(loss, wide)[0])
        return check_error(run(ours, x), run(theirs, x), exact)

    return Trial(
        ours=partial(run, ours, x),
        check=check,
        implementation="jepa_fast",
        baselines={"lightly": partial(run, theirs, x)},
    )


def _update_momentum(device: torch.device) -> Trial:
    torch.manual_seed(0)
    student = models.create("ijepa_vitb16").encoder.to(device)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.01)
    published = {"one parameter after the other": standins.update_momentum}
    try:
        published["lightly"] = importlib.import_module("lightly.models.utils").update_momentum
    except ImportError:
        published["foreach mul and add, as lightly 1.6"] = _foreach
    ours = library_functions.update_momentum(standins.update_momentum)

    def check() -> ErrorCheck:
        def updated(update: Callable[..., None]) -> list[Tensor]:
            moved = copy.deepcopy(teacher)
            update(student, moved, MOMENTUM)
            return list(moved.parameters())

        pairs = zip(teacher.parameters(), student.parameters(), strict=True)
        exact = (MOMENTUM * t.double() + (1 - MOMENTUM) * s.double() for t, s in pairs)
        return check_error(updated(ours), updated(standins.update_momentum), exact)

    return Trial(
        ours=partial(ours, student, teacher, MOMENTUM),
        check=check,
        implementation="jepa_fast",
        baselines={name: partial(update, student, teacher, MOMENTUM) for name, update in published.items()},
    )


@torch.no_grad()
def _foreach(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    targets = tuple(model_ema.parameters())
    torch._foreach_mul_(targets, m)
    torch._foreach_add_(targets, tuple(model.parameters()), alpha=1.0 - m)
