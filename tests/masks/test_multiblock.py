"""Multi-block masks: what the published sampler draws, and what its corrected form draws."""

import logging
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepa_fast.masks import Masks, MultiBlockMasks

# Index sets that the published sampler returns for these grids, options, steps and seeds of the global generator.
PUBLISHED = [
    pytest.param(
        (6, 7), {"target_scale": (0.2, 0.3), "num_targets": 2, "min_keep": 4}, 2, 3, 0,
        [[0, 1, 2, 17, 18, 19, 21, 22, 23, 24, 25, 26, 28, 29, 30, 31, 32, 33],
         [0, 1, 2, 3, 4, 5, 7, 8, 9, 14, 15, 16, 21, 22, 23, 28, 29, 30]],
        [[3, 4, 5, 10, 11, 12], [24, 25, 26, 31, 32, 33], [7, 8, 9, 14, 15, 16], [10, 11, 12, 17, 18, 19]],
        id="rectangular grid",
    ),
    pytest.param(
        6, {"target_scale": (0.5, 0.6), "num_targets": 3, "min_keep": 6}, 1, 5, 1,
        [[0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 24, 25, 26, 27, 28]],
        [[1, 2, 3, 4, 7, 8, 9, 10, 13, 14, 15, 16, 19, 20, 21, 22, 25, 26, 27, 28],
         [0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15, 18, 19, 20, 21, 24, 25, 26, 27],
         [1, 2, 3, 4, 7, 8, 9, 10, 13, 14, 15, 16, 19, 20, 21, 22, 25, 26, 27, 28]],
        id="all targets relaxed",
    ),
    pytest.param(
        (5, 8),
        {"context_scale": (0.3, 0.5), "target_scale": (0.15, 0.25), "num_context": 2, "num_targets": 2,
         "min_keep": 2},
        2, 11, 7,
        [[5, 6, 13, 14, 20, 21, 22, 27, 28, 29], [1, 2, 3, 4, 12, 20, 25, 26, 27, 28],
         [5, 6, 13, 14, 20, 21, 22, 27, 28, 29], [2, 3, 4, 5, 12, 13, 20, 21, 26, 27]],
        [[2, 3, 4, 10, 11, 12], [9, 10, 11, 17, 18, 19], [9, 10, 11, 17, 18, 19], [9, 10, 11, 17, 18, 19]],
        id="two contexts",
    ),
    pytest.param(
        6, {"target_scale": (0.2, 0.3), "num_targets": 2, "min_keep": 4, "allow_overlap": True}, 1, 2, 3,
        [[0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 24, 25, 26, 27, 28]],
        [[8, 9, 10, 14, 15, 16, 20, 21, 22], [6, 7, 8, 12, 13, 14, 18, 19, 20]],
        id="overlap allowed",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("grid", "options", "batch", "step", "seed", "context", "target"), PUBLISHED)
def test_published_draws(
    grid: Any, options: dict[str, Any], batch: int, step: int, seed: int, context: Any, target: Any
) -> None:
    torch.manual_seed(seed)
    masks = MultiBlockMasks(grid, **options).sample(batch, step)
    assert masks.context.tolist() == context
    assert masks.target.tolist() == target


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def block(row: Tensor, columns: int) -> set[tuple[int, int]]:
    return {divmod(index, columns) for index in row.tolist()}


def is_cut_rectangle(cells: set[tuple[int, int]]) -> bool:
    """A rectangle from which the last cells in row-major order may be missing."""
    rows, columns = ({cell[axis] for cell in cells} for axis in (0, 1))
    full = sorted(
        (r, c) for r in range(min(rows), max(rows) + 1) for c in range(min(columns), max(columns) + 1)
    )
    return sorted(cells) == full[: len(cells)]


grids = st.tuples(st.integers(8, 18), st.integers(8, 18))


@settings(max_examples=60, deadline=None)
@given(
    grid=grids, batch=st.integers(1, 5), contexts=st.integers(1, 2), targets=st.integers(1, 5),
    step=st.integers(0, 10**6), seed=st.integers(0, 2**32), fixed=st.booleans(),
)  # fmt: skip
def test_properties(
    grid: tuple[int, int], batch: int, contexts: int, targets: int, step: int, seed: int, fixed: bool
) -> None:
    rows, columns = grid
    sampler = MultiBlockMasks(grid, num_context=contexts, num_targets=targets, min_keep=5, fixed=fixed)
    masks = sampler.sample(batch, step, seeded(seed))
    assert len(masks.context) == contexts * batch
    assert len(masks.target) == targets * batch
    for index in masks:
        assert index.dtype == torch.int64
        assert index.shape[1] > 5
        assert (index.diff(dim=1) > 0).all()
        assert index.min() >= 0
        assert index.max() < rows * columns
    for row in masks.target:
        assert is_cut_rectangle(block(row, columns))
    if not fixed:
        for index in masks:
            assert (index // columns).max() < rows - 1
            assert (index % columns).max() < columns - 1
    again = sampler.sample(batch, step, seeded(seed))
    assert all(torch.equal(a, b) for a, b in zip(masks, again, strict=True))


def test_context_avoids_the_targets_of_its_image() -> None:
    """Seen where nothing is cut: a batch of one."""
    sampler = MultiBlockMasks(16, num_context=2)
    for step in range(50):
        masks = sampler.sample(1, step, seeded(step))
        for row in masks.context:
            assert not set(row.tolist()) & set(masks.target.flatten().tolist())


def test_rows_are_mask_major() -> None:
    """The generator draws image by image, so the first image does not change with the size of the batch."""
    sampler = MultiBlockMasks(16, num_context=2, num_targets=3)
    alone, pair = sampler.sample(1, 4, seeded(0)), sampler.sample(2, 4, seeded(0))
    assert torch.equal(pair.target[0::2], alone.target)
    length = pair.context.shape[1]
    assert torch.equal(pair.context[0::2], alone.context[:, :length])


def test_truncation_keeps_the_lowest_indices() -> None:
    sampler = MultiBlockMasks(16)
    alone, batch = sampler.sample(1, 7, seeded(3)), sampler.sample(16, 7, seeded(3))
    length = batch.context.shape[1]
    assert length < alone.context.shape[1]
    assert torch.equal(batch.context[0], alone.context[0, :length])


def test_fixed_reaches_every_edge() -> None:
    sampler = MultiBlockMasks(16, fixed=True)
    seen = torch.zeros(2, 256, dtype=torch.bool)
    for step in range(60):
        masks = sampler.sample(8, step, seeded(step))
        for kind, index in enumerate(masks):
            seen[kind, index.flatten()] = True
    assert seen.all()


def test_fixed_block_may_span_the_grid() -> None:
    whole = MultiBlockMasks(
        8, context_scale=(1.0, 1.0), target_scale=(0.3, 0.3), allow_overlap=True, fixed=True
    )
    assert torch.equal(whole.sample(1, 0).context, torch.arange(64)[None])


def test_one_block_size_per_step() -> None:
    sampler = MultiBlockMasks(16)
    assert len({sampler.sample(2, 9, seeded(seed)).target.shape[1] for seed in range(5)}) == 1
    assert len({sampler.sample(2, step, seeded(0)).target.shape[1] for step in range(20)}) > 1


def test_global_generator_is_the_default_and_an_own_one_leaves_it_alone() -> None:
    sampler = MultiBlockMasks(16)
    torch.manual_seed(5)
    from_global = sampler.sample(2, 0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    from_own = sampler.sample(2, 0, seeded(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(from_global, from_own, strict=True))


def test_relaxation_warns_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    """Two targets of two thirds of the grid leave a context block too few patches."""
    sampler = MultiBlockMasks(6, target_scale=(0.6, 0.7), num_targets=2, context_scale=(0.5, 0.5), min_keep=8)
    with caplog.at_level(logging.WARNING):
        masks = sampler.sample(1, 0, seeded(0))
    assert masks.context.shape[1] > 8
    assert "overlap the last 1" in caplog.text


def test_to_moves_both() -> None:
    moved = MultiBlockMasks(16).sample(2, 0).to("meta")
    assert isinstance(moved, Masks)
    assert {index.device.type for index in moved} == {"meta"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_size": 0}, "grid_size: .* at least 1 patch per side, got 0"),
        ({"grid_size": (4, -1)}, r"grid_size: .* at least 1 patch per side, got \(4, -1\)"),
        ({"context_scale": (0.9, 0.8)}, r"context_scale: expected 0 < low <= high <= 1, got \(0.9, 0.8\)"),
        ({"target_scale": (0.0, 0.2)}, "target_scale: expected 0 < low"),
        ({"target_scale": (0.5, 1.2)}, "target_scale: expected 0 < low <= high <= 1"),
        ({"aspect_ratio": (-1.0, 1.0)}, r"aspect_ratio: expected 0 < low <= high, both finite, got"),
        (
            {"aspect_ratio": (1, math.inf)},
            r"aspect_ratio: expected 0 < low <= high, both finite, got \(1, inf\)",
        ),
        ({"grid_size": 4.0}, r"grid_size: expected an integer or \(rows, columns\), .*, got 4.0"),
        ({"grid_size": (4,)}, r"grid_size: expected an integer or \(rows, columns\), .*, got \(4,\)"),
        ({"num_context": 0}, "num_context: expected at least 1, got 0"),
        ({"num_targets": 0}, "num_targets: expected at least 1, got 0"),
        ({"min_keep": -1}, "min_keep: expected at least 0, got -1"),
        (
            {"grid_size": 8},
            r"target_scale: expected blocks of more than min_keep = 10 .* 3 x 3 on a grid of 8 x 8",
        ),
        ({"grid_size": 1}, "target_scale: expected blocks of more than"),
        ({"context_scale": (0.02, 0.03)}, "context_scale: expected blocks of more than min_keep = 10"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiBlockMasks(**{"grid_size": 16, **options})


def test_bad_calls() -> None:
    sampler = MultiBlockMasks(16)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        sampler.sample(0, 0)
    with pytest.raises(ValueError, match="step: expected at least 0, got -1"):
        sampler.sample(1, -1)
