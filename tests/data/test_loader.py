"""The batches of training steps: functions of their numbers, in shares, by workers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jepa_fast.data import Source, StepBatches, View, open_source
from jepa_fast.data.loader import rows_of_masks
from jepa_fast.masks import Masks, MultiBlockMasks


def batches(source: Source, size: int = 2, **options: Any) -> StepBatches:
    return StepBatches(source, size, [View(8)], **options)


@pytest.fixture
def source(tmp_path: Path, write_image: Callable[..., Path]) -> Source:
    for number in range(9):
        write_image(tmp_path / "pictures" / f"{number}.png", number)
    return open_source(tmp_path / "pictures", short_side=8)


def test_a_step_is_a_function_of_its_number(source: Source) -> None:
    one, other = batches(source), batches(source)
    expected = [one[step] for step in range(6)]
    for step in (5, 0, 3):
        again = other[step]
        assert torch.equal(again.pixels, expected[step].pixels)
        assert torch.equal(again.parameters[0], expected[step].parameters[0])
    assert not torch.equal(batches(source, seed=1)[0].indices, expected[0].indices)


def test_shares_make_up_the_batch(source: Source) -> None:
    sampler = MultiBlockMasks(10).sample
    whole = batches(source, 4, sampler=sampler)[1]
    halves = [batches(source, 4, sampler=sampler, share=share)[1] for share in ((0, 2), (2, 4))]
    assert torch.equal(torch.cat([half.indices for half in halves]), whole.indices)
    for half, start in zip(halves, (0, 2), strict=True):
        assert isinstance(half.masks, Masks)
        rows = whole.rows(start, start + 2)
        assert torch.equal(half.masks.target, rows.masks.target)
        assert torch.equal(half.masks.context, rows.masks.context)
        assert torch.equal(half.parameters[0], rows.parameters[0])


def test_ragged_rows_are_renumbered() -> None:
    masks = MultiBlockMasks(10, ragged=True).sample(4, 0, torch.Generator().manual_seed(0))
    part = rows_of_masks(masks, 4, 1, 3)
    assert len(part.context.lengths) == 2
    assert len(part.target.lengths) == 8
    for index, own in ((masks.target, part.target), (masks.context, part.context)):
        by_row = index.ids.split(list(index.lengths))
        expected = [by_row[row] for row in range(len(by_row)) if row % 4 in (1, 2)]
        got = own.ids.split(list(own.lengths))
        assert all(map(torch.equal, got, expected))
        assert own.rows.tolist() == [row for row, length in enumerate(own.lengths) for _ in range(length)]


def test_a_subset_is_all_that_is_seen(source: Source) -> None:
    some = batches(source, subset=[2, 5, 7])
    seen = {int(index) for step in range(6) for index in some[step].indices}
    assert seen <= {2, 5, 7}


def test_workers_make_the_same_batches(source: Source) -> None:
    steps = batches(source)
    loader = torch.utils.data.DataLoader(steps, batch_size=None, sampler=range(3, 7), num_workers=2)
    for step, made in enumerate(loader, 3):
        assert torch.equal(made.pixels, steps[step].pixels)


def test_large_pictures_are_scaled_down_by_the_worker(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 300, 400, 3), np.uint8))
    made = batches(open_source(tmp_path / "a.npz", short_side=17))[0]
    assert made.pixels.shape == (2, 1, 3, 17, 23)
