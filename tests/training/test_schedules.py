"""The published schedules, held against the formulas and against values computed from the published code."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from jepa_fast.training.schedules import learning_rate, max_norm, momentum, rates, weight_decay

RUN = {"total_steps": 300 * 625, "warmup_steps": 40 * 625}  # ImageNet-1k at a batch of 2048
TOTAL = {"total_steps": RUN["total_steps"]}


def test_learning_rate_follows_the_formula() -> None:
    for step in [*range(0, 187_500, 997), 24_998, 24_999, 25_000, 187_499]:
        done = step + 1
        if done < 25_000:
            expected = 2e-4 + (done / 25_000) * (1e-3 - 2e-4)
        else:
            expected = 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * (done - 25_000) / 162_500)) / 2
        assert learning_rate(step, **RUN) == pytest.approx(expected, rel=1e-14)


def test_weight_decay_follows_the_formula() -> None:
    for step in range(0, 187_500, 997):
        expected = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * (step + 1) / 187_500)) / 2
        assert weight_decay(step, **TOTAL) == pytest.approx(expected, rel=1e-14)


def test_momentum_follows_the_formula() -> None:
    for step in range(0, 187_500, 997):
        assert momentum(step, **TOTAL) == pytest.approx(0.996 + 0.004 * step / 187_500, rel=1e-15)


def test_ends_and_turning_point() -> None:
    assert learning_rate(0, **RUN) > 2e-4  # the schedule is advanced before the first step
    assert learning_rate(24_999, **RUN) == 1e-3
    assert learning_rate(187_499, **RUN) == 1e-6
    assert weight_decay(0, **TOTAL) > 0.04
    assert weight_decay(187_499, **TOTAL) == 0.4
    assert momentum(0, **TOTAL) == 0.996
    assert momentum(187_499, **TOTAL) < 1.0  # the published generator ends one value later


def test_no_warmup_and_nothing_but_warmup() -> None:
    assert learning_rate(0, total_steps=10, warmup_steps=0) < 1e-3
    assert learning_rate(9, total_steps=10, warmup_steps=10) == 1e-3


def test_weight_decay_may_fall() -> None:
    values = [weight_decay(step, total_steps=50, start=0.4, final=0.04) for step in range(50)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0.04


# Learning rate, weight decay and momentum of these steps, as the published code computes them.
IJEPA = {
    0: ("0x1.a37f5cbdac59ap-13", "0x1.47ae147e5a410p-5", "0x1.fdf3b645a1cacp-1"),
    12_345: ("0x1.37fd363ae94edp-11", "0x1.671dcd4db82a8p-5", "0x1.fe163b2ace5fdp-1"),
    24_998: ("0x1.0622b76d9d9aep-10", "0x1.c7270123a2b38p-5", "0x1.fe399c8993c2cp-1"),
    24_999: ("0x1.0624dd2f1a9fcp-10", "0x1.c72993b34a508p-5", "0x1.fe399d40d441cp-1"),
    25_000: ("0x1.0624dd2eb1867p-10", "0x1.c72c26494a2a8p-5", "0x1.fe399df814c0dp-1"),
    100_000: ("0x1.25f7ad43198a3p-11", "0x1.e91979d8b3865p-3", "0x1.ff0b550f6da2ep-1"),
    187_499: ("0x1.0c6f7a0b5ed8dp-20", "0x1.999999999999ap-2", "0x1.ffffff48bf810p-1"),
}
VJEPA = {
    0: ("0x1.a3813252f1cddp-13", "0x1.47ae148486a78p-5", "0x1.fef9db22d0e56p-1"),
    11_999: ("0x1.47ae147ae147bp-11", "0x1.99b34c12328a8p-5", "0x1.ff15d0d17c557p-1"),
    12_000: ("0x1.47ae14798a056p-11", "0x1.99b6c396b3bf0p-5", "0x1.ff15d16a32149p-1"),
    50_000: ("0x1.c26ef02f5e045p-12", "0x1.828e7510e7f86p-3", "0x1.ff6e5d4c3b2a2p-1"),
    89_999: ("0x1.3abff99568180p-14", "0x1.7665e4240f1adp-2", "0x1.ffcb91a174085p-1"),
}
CONSTANT = "0x1.47ae147ae147bp-5", "0x1.ff9db22d0e560p-1"  # the decay and momentum of V-JEPA 2
COOLDOWN = {
    0: ("0x1.133b9e57cf438p-11", *CONSTANT),
    6_000: ("0x1.4aaf2a5cb5abep-12", *CONSTANT),
    11_999: ("0x1.bbc1e28dff318p-14", *CONSTANT),
}
ACTIONS = {
    0: ("0x1.3ae62669df383p-14", CONSTANT[0], "0x1p+0"),
    4_499: ("0x1.bda5119ce075fp-12", CONSTANT[0], "0x1p+0"),
    89_999: ("0x1.bda5119ce075fp-12", CONSTANT[0], "0x1p+0"),
    90_000: ("0x1.bd8bb770a3a75p-12", CONSTANT[0], "0x1p+0"),
    94_499: ("0x0p+0", CONSTANT[0], "0x1p+0"),
}


def plan(
    steps: int,
    warmup_steps: int,
    lr: tuple[float, float, float],
    weight_decay: tuple[float, float],
    momentum: tuple[float, float],
    **others: Any,
) -> dict[str, Any]:
    """lr: start, peak and final; the others: start and final."""
    ends = dict(zip(("start_lr", "lr", "final_lr"), lr, strict=True))
    ends |= dict(zip(("weight_decay", "final_weight_decay"), weight_decay, strict=True))
    ends |= dict(zip(("momentum", "final_momentum"), momentum, strict=True))
    form = {"decay": "cosine", "decay_steps": None, "schedule_scale": 1.0}
    return {"steps": steps, "warmup_steps": warmup_steps, **ends, **form, **others}


STILL: Any = (0.04, 0.04), (0.99925, 0.99925)
SYSTEMS: dict[str, dict[str, Any]] = {
    "I-JEPA": plan(187_500, 25_000, (2e-4, 1e-3, 1e-6), (0.04, 0.4), (0.996, 1.0)),
    "V-JEPA": plan(90_000, 12_000, (2e-4, 6.25e-4, 1e-6), (0.04, 0.4), (0.998, 1.0), schedule_scale=1.25),
    "V-JEPA 2": plan(240_000, 12_000, (1e-4, 5.25e-4, 5.25e-4), *STILL, decay_steps=0),
    "V-JEPA 2.1": plan(300_000, 12_000, (1e-4, 6e-4, 6e-4), *STILL, schedule_scale=1.25),
    "cool-down": plan(12_000, 0, (1e-4, 5.25e-4, 1e-6), *STILL, decay="linear", schedule_scale=1.25),
    "V-JEPA 2-AC": plan(
        94_500, 4_500, (7.5e-5, 4.25e-4, 0.0), (0.04, 0.04), (1.0, 1.0), decay="linear", decay_steps=4_500
    ),
    "any": plan(997, 101, (2e-4, 6.25e-4, 1e-6), (0.4, 0.04), (0.998, 1.0), schedule_scale=1.37),
}


@pytest.mark.parametrize(
    ("system", "values"),
    [("I-JEPA", IJEPA), ("V-JEPA", VJEPA), ("cool-down", COOLDOWN), ("V-JEPA 2-AC", ACTIONS)],
)
def test_values_are_those_of_the_published_code(system: str, values: dict[int, tuple[str, str, str]]) -> None:
    for step, published in values.items():
        for value, other in zip(
            rates(step, SYSTEMS[system]).values(), map(float.fromhex, published), strict=True
        ):
            # Equal with the C library that they were computed with; another one's cosine may round apart.
            assert abs(value - other) <= math.ulp(other), step


def half_cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * share))


def cosine(done: int, length: int, p: dict[str, Any]) -> float:
    """I-JEPA and V-JEPA; with equal ends the constant of V-JEPA 2 and 2.1."""
    return max(
        p["final_lr"],
        half_cosine(p["lr"], p["final_lr"], (done - p["warmup_steps"]) / (length - p["warmup_steps"])),
    )


def line(done: int, length: int, p: dict[str, Any]) -> float:
    """The cool-downs."""
    return p["lr"] + done / length * (p["final_lr"] - p["lr"])


def stable_then_line(done: int, length: int, p: dict[str, Any]) -> float:
    """V-JEPA 2-AC: stable for all but the steps of warm-up and decay."""
    stable = length - p["warmup_steps"] - p["decay_steps"]
    past = done - (stable + p["warmup_steps"])
    return p["lr"] if past < 0 else p["lr"] + past / p["decay_steps"] * (p["final_lr"] - p["lr"])


AFTER_WARMUP: dict[str, Callable[[int, int, dict[str, Any]], float]] = {
    **dict.fromkeys(SYSTEMS, cosine), "cool-down": line, "V-JEPA 2-AC": stable_then_line,
}  # fmt: skip


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_step_is_the_formula_to_the_last_bit(system: str) -> None:
    p = SYSTEMS[system]
    steps, warmup, scale = p["steps"], p["warmup_steps"], p["schedule_scale"]
    length = int(scale * steps)
    for step in range(steps):
        done = step + 1  # learning rate and weight decay are advanced before the step, the momentum after it
        lr = p["start_lr"] + done / max(1, warmup) * (p["lr"] - p["start_lr"])
        lr = lr if done < warmup else AFTER_WARMUP[system](done, length, p)
        between = sorted((p["weight_decay"], p["final_weight_decay"]))
        decay = half_cosine(p["weight_decay"], p["final_weight_decay"], done / length)
        decay = (
            min(decay, between[1]) if p["final_weight_decay"] > p["weight_decay"] else max(decay, between[0])
        )
        kept = p["momentum"] + step * (p["final_momentum"] - p["momentum"]) / (steps * scale)
        assert rates(step, p) == {"lr": lr, "weight_decay": decay, "momentum": kept}, step


def test_a_scaled_schedule_is_cut_off() -> None:
    """With the published scale of 1.25 the cool-down ends after four fifths of its way."""
    last = rates(11_999, SYSTEMS["cool-down"])["lr"]
    assert last == pytest.approx(5.25e-4 + 0.8 * (1e-6 - 5.25e-4))
    assert rates(11_999, SYSTEMS["cool-down"] | {"schedule_scale": 1.0})["lr"] == pytest.approx(1e-6)


def test_no_decay_is_the_published_constant() -> None:
    """As a cosine between equal ends, to the last bit."""
    for step in range(0, 240_000, 991):
        same = SYSTEMS["V-JEPA 2"] | {"decay_steps": None, "schedule_scale": 1.25}
        assert rates(step, same)["lr"] == rates(step, SYSTEMS["V-JEPA 2"])["lr"]
    assert rates(239_999, SYSTEMS["V-JEPA 2"] | {"final_lr": 0.0})["lr"] == 5.25e-4


def test_the_norm_is_limited_from_its_step_on() -> None:
    limits = {"max_norm": 10.0, "max_norm_start": 12_300}
    assert [max_norm(step, limits) for step in (0, 12_299, 12_300, 89_999)] == [None, None, 10.0, 10.0]
    assert max_norm(0, {"max_norm": None, "max_norm_start": 0}) is None


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_outside_of_the_run_is_refused(step: int) -> None:
    for value in (
        lambda: learning_rate(step, total_steps=10, warmup_steps=2),
        lambda: weight_decay(step, total_steps=10),
        lambda: momentum(step, total_steps=10),
    ):
        with pytest.raises(ValueError, match=f"step: expected 0 to 9, total_steps - 1, got {step}"):
            value()


def test_too_long_a_warmup_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup_steps: expected 0 to total_steps = 10, got 11"):
        learning_rate(0, total_steps=10, warmup_steps=11)


@pytest.mark.parametrize("decay_steps", [-1, 12])
def test_too_long_a_decay_is_refused(decay_steps: int) -> None:
    with pytest.raises(
        ValueError, match=f"decay_steps: expected 0 to 11, the steps after the warm-up, got {decay_steps}"
    ):
        learning_rate(0, total_steps=10, warmup_steps=1, decay_steps=decay_steps, scale=1.25)
