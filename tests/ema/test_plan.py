"""The cache of work lists never serves a list that it was not made for."""

import pytest
import torch

from jepa_fast import ema_update_
from jepa_fast.kernels.ema import plan as plans


def test_known_lists_are_found_again() -> None:
    targets, sources = [torch.zeros(4)], [torch.ones(4)]
    cpu = torch.device("cpu")
    assert plans.find(targets, sources, cpu) is plans.find(targets, sources, cpu)


def test_same_memory_in_another_shape_is_checked_anew() -> None:
    target, source = torch.zeros(2, 6), torch.ones(2, 6)
    ema_update_([target], [source], 0.5)
    with pytest.raises(
        ValueError, match=r"sources\[0\]: expected shape \[3, 4\] of targets\[0\], got \[2, 6\]"
    ):
        ema_update_([target.view(3, 4)], [source], 0.5)
    with pytest.raises(TypeError, match=r"sources\[0\]: expected a floating-point dtype"):
        ema_update_([target], [source.view(torch.int32)], 0.5)
    with pytest.raises(ValueError, match=r"targets\[0\]: expected memory of its own"):
        ema_update_([target], [target], 0.5)


def test_other_data_at_the_same_address_is_read_anew() -> None:
    target, source = torch.zeros(4), torch.ones(4)
    ema_update_([target], [source], 0.0)
    source.fill_(5.0)
    ema_update_([target], [source], 0.0)
    assert (target == 5.0).all()


def test_cache_is_bounded() -> None:
    kept = [(torch.zeros(2), torch.ones(2)) for _ in range(3 * plans._PLANS_KEPT)]
    for target, source in kept:
        ema_update_([target], [source], 0.5)
    assert len(plans._plans) <= plans._PLANS_KEPT


def test_a_refused_list_is_not_remembered() -> None:
    x = torch.zeros(4)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"targets\[0\]: expected memory of its own"):
            ema_update_([x], [x], 0.5)
