"""The published schedules, held against the formulas and against values computed from the published code."""

import math

import pytest

from jepa_fast.training.schedules import learning_rate, momentum, weight_decay

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
PUBLISHED = {
    0: ("0x1.a37f5cbdac59ap-13", "0x1.47ae147e5a410p-5", "0x1.fdf3b645a1cacp-1"),
    12_345: ("0x1.37fd363ae94edp-11", "0x1.671dcd4db82a8p-5", "0x1.fe163b2ace5fdp-1"),
    24_998: ("0x1.0622b76d9d9aep-10", "0x1.c7270123a2b38p-5", "0x1.fe399c8993c2cp-1"),
    24_999: ("0x1.0624dd2f1a9fcp-10", "0x1.c72993b34a508p-5", "0x1.fe399d40d441cp-1"),
    25_000: ("0x1.0624dd2eb1867p-10", "0x1.c72c26494a2a8p-5", "0x1.fe399df814c0dp-1"),
    100_000: ("0x1.25f7ad43198a3p-11", "0x1.e91979d8b3865p-3", "0x1.ff0b550f6da2ep-1"),
    187_499: ("0x1.0c6f7a0b5ed8dp-20", "0x1.999999999999ap-2", "0x1.ffffff48bf810p-1"),
}


@pytest.mark.parametrize("step", PUBLISHED)
def test_values_are_those_of_the_published_code(step: int) -> None:
    ours = learning_rate(step, **RUN), weight_decay(step, **TOTAL), momentum(step, **TOTAL)
    for value, published in zip(ours, map(float.fromhex, PUBLISHED[step]), strict=True):
        # Equal with the C library that they were computed with; another one's cosine may round apart.
        assert abs(value - published) <= math.ulp(published)


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
