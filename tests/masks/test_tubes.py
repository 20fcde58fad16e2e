"""Tube masks against the published collators' draws, ragged rows against cut ones, and refusals."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_fast.bench.baselines.masks import ijepa_masks, vjepa_masks
from jepa_fast.masks import IMAGE_SETS, PUBLISHED_SETS, MultiBlockMasks, Ragged, TubeMasks, TubeSet
from jepa_fast.masks.draws import integers

EMPTY_OFTEN = TubeSet(3, (0.6, 0.9))
SHORT = TubeSet(5, (0.1, 0.3), temporal_scale=(0.3, 0.9), aspect_ratio=(0.3, 3.0))
CUT_TIME = TubeSet(2, (0.2, 0.4), max_temporal_keep=0.5, max_keep=9)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(index: Ragged) -> list[list[int]]:
    return [part.tolist() for part in index.ids.split(list(index.lengths))]


@pytest.mark.parametrize("grid", [(8, 14, 14), (4, 6, 5), (1, 16, 16)])
@pytest.mark.parametrize(
    "sets", [PUBLISHED_SETS, IMAGE_SETS, (EMPTY_OFTEN,), (SHORT, CUT_TIME)], ids=str
)  # fmt: skip
def test_published_draws(grid: tuple[int, int, int], sets: tuple[TubeSet, ...]) -> None:
    """The same indices, and the same state of the global generator afterwards."""
    for step, batch in ((0, 3), (7, 1), (11, 5)):
        torch.manual_seed(step)
        expected = vjepa_masks(grid, sets, batch, step)
        state = torch.get_rng_state()
        torch.manual_seed(step)
        found = TubeMasks(grid, sets=sets).sample(batch, step)
        assert torch.equal(torch.get_rng_state(), state)
        for (context, target), masks in zip(expected, found, strict=True):
            assert torch.equal(masks.context, context)
            assert torch.equal(masks.target, target)


@pytest.mark.parametrize(("side", "target_scale"), [(16, (0.15, 0.2)), (9, (0.3, 0.45))])
def test_published_draws_of_images(side: int, target_scale: tuple[float, float]) -> None:
    """Large targets have contexts drawn again and relaxed: sample by sample then."""
    for step in range(6):
        torch.manual_seed(step)
        context, target = ijepa_masks(side, 7, step, target_scale=target_scale)
        state = torch.get_rng_state()
        torch.manual_seed(step)
        masks = MultiBlockMasks(side, target_scale=target_scale).sample(7, step)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(masks.context, context)
        assert torch.equal(masks.target, target)


@settings(max_examples=40, deadline=None)
@given(high=st.lists(st.integers(1, 2**28 - 1), max_size=9), seed=st.integers(0, 2**32))
def test_draws_are_those_of_single_calls(high: list[int], seed: int) -> None:
    one, other = seeded(seed), seeded(seed)
    expected = [torch.randint(end, (1,), generator=one).item() for end in high]
    assert integers(np.array(high, dtype=np.int64), other).tolist() == expected
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("sets", [PUBLISHED_SETS, (SHORT,)], ids=["published", "short"])
def test_ragged_rows_keep_every_token(sets: tuple[TubeSet, ...]) -> None:
    grid, batch = (4, 8, 8), 6
    cut = TubeMasks(grid, sets=sets).sample(batch, 3, seeded(1))
    ragged = TubeMasks(grid, sets=sets, ragged=True).sample(batch, 3, seeded(1))
    for short, whole in zip(cut, ragged, strict=True):
        contexts, targets = rows(whole.context), rows(whole.target)
        for sample, (context, target) in enumerate(zip(contexts, targets, strict=True)):
            assert sorted(context + target) == list(range(4 * 8 * 8))
            assert context == sorted(context)
            assert short.context[sample].tolist() == context[: short.context.shape[1]]
            assert short.target[sample].tolist() == target[: short.target.shape[1]]
        expected = np.repeat(range(batch), whole.context.lengths)
        assert whole.context.rows.tolist() == expected.tolist()
        assert short.context.shape[1] == min(whole.context.lengths)
    assert ragged.token_counts[0] > cut.token_counts[0]


def test_ragged_images() -> None:
    options: dict[str, Any] = {"num_context": 2, "num_targets": 3}
    cut = MultiBlockMasks(16, **options).sample(4, 2, seeded(0))
    ragged = MultiBlockMasks(16, ragged=True, **options).sample(4, 2, seeded(0))
    for short, whole in zip(cut, ragged, strict=True):
        for sample, row in enumerate(rows(whole)):
            assert short[sample].tolist() == row[: short.shape[1]]


def test_a_step_and_a_seed_decide() -> None:
    """A run continued at a step draws what the uninterrupted one would have drawn."""
    sampler = TubeMasks((4, 8, 8))
    run = [sampler.sample(2, step, seeded(100 + step)) for step in range(5)]
    again = TubeMasks((4, 8, 8)).sample(2, 3, seeded(103))
    for before, after in zip(run[3], again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert len({masks[1].target.shape for masks in run}) > 1


def test_to_moves_all() -> None:
    for ragged in (False, True):
        moved = TubeMasks((2, 8, 8), ragged=ragged).sample(2, 0).to("meta")
        for masks in moved:
            parts = masks.context[:2] if ragged else masks
            assert {tensor.device.type for tensor in parts} == {"meta"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_size": (8, 8)}, r"grid_size: expected \(frames, rows, columns\) of at least 1 each, got"),
        (
            {"grid_size": (2, 4, 4), "sets": [TubeSet(4, (0.1, 0.1), aspect_ratio=(1, 8))]},
            r"spatial_scale: .* aspect_ratio = \(1, 8\) makes blocks of 3 x 0 on a grid of 4 x 4",
        ),
        ({"grid_size": (2, 8.0, 8)}, r"grid_size: expected .*, got \(2, 8.0, 8\)"),
        ({"grid_size": 8}, r"grid_size: expected .*, got 8"),
        ({"grid_size": (0, 8, 8)}, r"grid_size: expected .*, got \(0, 8, 8\)"),
        ({"sets": ()}, "sets: expected at least one, got none"),
        ({"grid_size": (2, 2, 2), "sets": IMAGE_SETS}, "spatial_scale: expected blocks of at least 1 patch"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TubeMasks(**{"grid_size": (2, 8, 8), **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_blocks": 0}, "num_blocks: expected at least 1, got 0"),
        ({"spatial_scale": (0.0, 0.5)}, "spatial_scale: expected 0 < low"),
        ({"temporal_scale": (0.5, 1.5)}, "temporal_scale: expected 0 < low <= high <= 1"),
        ({"aspect_ratio": (2.0, 1.0)}, "aspect_ratio: expected 0 < low <= high"),
        (
            {"aspect_ratio": (1.0, math.inf)},
            r"aspect_ratio: expected 0 < low <= high, both finite, got \(1.0, inf\)",
        ),
        ({"aspect_ratio": 1.0}, "aspect_ratio: expected 0 < low <= high, both finite, got 1.0"),
        ({"max_temporal_keep": 0.0}, "max_temporal_keep: expected 0 < share <= 1, got 0.0"),
        ({"max_keep": 0}, "max_keep: expected at least 1, got 0"),
    ],
)
def test_bad_sets(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TubeSet(**{"num_blocks": 1, "spatial_scale": (0.1, 0.2), **options})


def test_bad_calls() -> None:
    sampler = TubeMasks((2, 8, 8))
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        sampler.sample(0, 0)
    with pytest.raises(ValueError, match="step: expected at least 0, got -1"):
        sampler.sample(1, -1)
    whole = TubeMasks((2, 8, 8), sets=(TubeSet(1, (1.0, 1.0), aspect_ratio=(1.0, 1.0)),))
    with pytest.raises(RuntimeError, match="left no context"):
        whole.sample(1, 0)
