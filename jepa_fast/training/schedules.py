"""The published schedules, as pure functions of the training step.

`step` counts from 0: it is the number of optimisation steps already done. The values are bit-equal, in float64, to
those of the published training codes of I-JEPA (arXiv 2301.08243), V-JEPA (2404.08471), V-JEPA 2, its cool-down and
2-AC (2506.09985), and V-JEPA 2.1. There learning rate and weight decay are advanced before a step and the momentum
after it; `learning_rate(0)` and `weight_decay(0)` are therefore one step into their schedule, `momentum(0)` is the
start value.

With `scale` (published as ipe_scale) all three are those of a run of `scale * total_steps` steps, which ends after
`total_steps`. That length is rounded down for learning rate and weight decay, and not rounded for the momentum. Warm-up
and decay have their number of steps whatever the scale.
"""

import math
from typing import Any, Literal


def learning_rate(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    start: float = 2e-4,
    peak: float = 1e-3,
    final: float = 1e-6,
    decay: Literal["cosine", "linear"] = "cosine",
    decay_steps: int | None = None,
    scale: float = 1.0,
) -> float:
    """Linear from `start` to `peak` over `warmup_steps`, then `peak`, then in `decay_steps` to `final`.

    decay: "cosine", half of one, or "linear".
    decay_steps: the last ones of the (scaled) schedule; None is all after the warm-up (I-JEPA, V-JEPA, the cool-downs
        of V-JEPA 2 and 2.1), 0 none (V-JEPA 2 and 2.1), a number in between is warm-up, stable, decay (V-JEPA 2-AC).

    Raises ValueError for a step outside of the run, and for steps of warm-up and decay that are more than there are.
    """
    _check_step(step, total_steps)
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps: expected 0 to total_steps = {total_steps}, got {warmup_steps}")
    most = scaled_steps(total_steps, scale) - warmup_steps
    decay_steps = most if decay_steps is None else decay_steps
    if not 0 <= decay_steps <= most:
        raise ValueError(f"decay_steps: expected 0 to {most}, the steps after the warm-up, got {decay_steps}")
    done = step + 1
    if done < warmup_steps:
        return start + done / warmup_steps * (peak - start)
    into_decay = done - (warmup_steps + most - decay_steps)
    if into_decay < 0 or decay_steps == 0:
        return peak
    progress = into_decay / decay_steps
    if decay == "linear":
        return peak + progress * (final - peak)
    return max(final, final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def weight_decay(
    step: int, *, total_steps: int, start: float = 0.04, final: float = 0.4, scale: float = 1.0
) -> float:
    """Half a cosine from `start` to `final`; for the parameters of two and more dimensions."""
    _check_step(step, total_steps)
    progress = (step + 1) / scaled_steps(total_steps, scale)
    value = final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return max(final, value) if final <= start else min(final, value)


def momentum(
    step: int, *, total_steps: int, start: float = 0.996, final: float = 1.0, scale: float = 1.0
) -> float:
    """Linear from `start` to `final`: how much of itself the teacher keeps in the update of this step."""
    _check_step(step, total_steps)
    return start + step * (final - start) / (total_steps * scale)


def scaled_steps(total_steps: int, scale: float) -> int:
    """The length of the schedules of learning rate and weight decay, rounded as published."""
    return int(scale * total_steps)


def rates(step: int, plan: dict[str, Any]) -> dict[str, float]:
    """All three at a step of a run; `plan` has the fields of a configuration, and its steps in all."""
    length = {"total_steps": plan["steps"], "scale": plan["schedule_scale"]}
    return {
        "lr": learning_rate(
            step,
            warmup_steps=plan["warmup_steps"],
            start=plan["start_lr"],
            peak=plan["lr"],
            final=plan["final_lr"],
            decay=plan["decay"],
            decay_steps=plan["decay_steps"],
            **length,
        ),
        "weight_decay": weight_decay(
            step, start=plan["weight_decay"], final=plan["final_weight_decay"], **length
        ),
        "momentum": momentum(step, start=plan["momentum"], final=plan["final_momentum"], **length),
    }


def max_norm(step: int, plan: dict[str, Any]) -> float | None:
    """The norm that gradients are scaled down to at a step of a run; None for no limit.

    The published V-JEPA has none in its warm-up, nor in the epoch after it.
    """
    limit: float | None = plan["max_norm"]
    return limit if step >= plan["max_norm_start"] else None


def _check_step(step: int, total_steps: int) -> None:
    if not 0 <= step < total_steps:
        raise ValueError(f"step: expected 0 to {total_steps - 1}, total_steps - 1, got {step}")
