"""The published I-JEPA schedules, as pure functions of the training step.

`step` counts from 0: it is the number of optimisation steps already done. The values are bit-equal, in
float64, to those of the published training (arXiv 2301.08243, appendix A.1, and its code), where the
two cosine schedules are advanced before the first step and the momentum after it; `learning_rate(0)`
and `weight_decay(0)` are therefore one step into their schedule, `momentum(0)` is the start value.
"""

import math
from typing import Any


def learning_rate(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    start: float = 2e-4,
    peak: float = 1e-3,
    final: float = 1e-6,
) -> float:
    """Linear from `start` to `peak` over `warmup_steps`, then half a cosine to `final`."""
    _check_step(step, total_steps)
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps: expected 0 to total_steps = {total_steps}, got {warmup_steps}")
    done = step + 1
    if done < warmup_steps:
        return start + done / warmup_steps * (peak - start)
    progress = (done - warmup_steps) / max(1, total_steps - warmup_steps)
    return max(final, final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def weight_decay(step: int, *, total_steps: int, start: float = 0.04, final: float = 0.4) -> float:
    """Half a cosine from `start` to `final`; for the parameters of two and more dimensions."""
    _check_step(step, total_steps)
    progress = (step + 1) / total_steps
    value = final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return max(final, value) if final <= start else min(final, value)


def momentum(step: int, *, total_steps: int, start: float = 0.996, final: float = 1.0) -> float:
    """Linear from `start` to `final`: how much of itself the teacher keeps in the update of this step."""
    _check_step(step, total_steps)
    return start + step * (final - start) / total_steps


def rates(step: int, plan: dict[str, Any]) -> dict[str, float]:
    """All three at a step of a run; `plan` has the fields of a configuration, and its steps in all."""
    total = plan["steps"]
    return {
        "lr": learning_rate(
            step,
            total_steps=total,
            warmup_steps=plan["warmup_steps"],
            start=plan["start_lr"],
            peak=plan["lr"],
            final=plan["final_lr"],
        ),
        "weight_decay": weight_decay(
            step, total_steps=total, start=plan["weight_decay"], final=plan["final_weight_decay"]
        ),
        "momentum": momentum(step, total_steps=total, start=plan["momentum"], final=plan["final_momentum"]),
    }


def _check_step(step: int, total_steps: int) -> None:
    if not 0 <= step < total_steps:
        raise ValueError(f"step: expected 0 to {total_steps - 1}, total_steps - 1, got {step}")
