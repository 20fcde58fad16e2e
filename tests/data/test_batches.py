"""The order of the samples: a fresh permutation per epoch, known for every step on its own."""

import pytest

from jepa_fast.data import EpochBatches, stream_seed


def test_an_epoch_has_every_sample_at_most_once() -> None:
    batches = EpochBatches(10, 3, stop=6)
    assert batches.steps_per_epoch == 3
    for epoch in range(2):
        keys = [key for step in range(3) for key in batches.batch(epoch * 3 + step)]
        assert {key[0] for key in keys} == {epoch}
        assert len({key[1] for key in keys}) == 9


def test_epochs_and_seeds_are_ordered_differently() -> None:
    orders = {
        tuple(index for _, index in EpochBatches(50, 50, seed=seed, stop=9).batch(epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_starting_later_gives_the_same_batches() -> None:
    whole = list(EpochBatches(10, 4, seed=1, stop=7))
    assert list(EpochBatches(10, 4, seed=1, start=3, stop=7)) == whole[3:]
    assert len(EpochBatches(10, 4, start=3, stop=7)) == 4
    assert list(EpochBatches(10, 4, start=7, stop=7)) == []


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_that_cannot_be_filled_is_refused(batch_size: int) -> None:
    with pytest.raises(
        ValueError, match=f"batch_size: expected 1 to 10, the number of samples, got {batch_size}"
    ):
        EpochBatches(10, batch_size)


def test_streams_are_apart() -> None:
    seeds = {
        stream_seed(s, name, *at)
        for s in (0, 1)
        for name in ("a", "b")
        for at in ((), (0,), (1,), (0, 1), (1, 0))
    }
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_stream_never_changes() -> None:
    """The numbers are part of every checkpoint: another value would make resumed runs differ."""
    assert stream_seed(0, "crop", 3, 2) == 3188210719086252091
