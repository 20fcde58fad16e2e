"""Two training runs agree while their losses differ by no more than rounding does, and not beyond."""

import copy
import math

import pytest
import torch
from torch import Tensor

from jepa_fast import models
from jepa_fast.bench.baselines.ijepa import EagerIJEPAStep
from jepa_fast.bench.measure.agreement import FLOOR_ULPS, TIMES_PEER, agreement
from jepa_fast.bench.measure.training import Batch, Contestant, Curve, Hyperparameters, train_side_by_side
from jepa_fast.masks import Masks, MultiBlockMasks
from jepa_fast.training.step import IJEPAStep, Precision

ULP = torch.finfo(torch.float32).eps
STEPS = 8

Setting = tuple[models.IJEPA, list[Batch]]
Curves = dict[str, Curve]


class TestAgreement:
    def test_equal_curves_agree(self) -> None:
        found = agreement([3.0, 2.0], [[3.0, 2.0]], [3.0, 2.0])
        assert found.first_disagreement is None
        assert found.ratio == 0
        assert found.check.passed

    def test_the_budget_grows_with_the_farthest_peer_so_far(self) -> None:
        found = agreement([1.0] * 3, [[1.0, 1.01, 1.001], [1.0, 1.0, 0.98]], [1.0] * 3)
        floor = FLOOR_ULPS * ULP
        assert found.peer == pytest.approx([0.0, 0.01, 0.02])
        assert found.budget == pytest.approx([floor, TIMES_PEER * 0.01 + floor, TIMES_PEER * 0.02 + floor])

    def test_the_first_step_over_budget_is_named(self) -> None:
        found = agreement([1.0, 1.01, 1.05, 1.06], [[1.0, 1.01, 1.01, 1.01]], [1.0] * 4)
        assert found.first_disagreement == 2
        assert (
            found.check.reason == "loss of step 3: relative difference 5.0e-02 is over its budget of 4.0e-02"
        )

    def test_a_loss_that_is_not_a_number_disagrees(self) -> None:
        assert agreement([1.0, math.nan], [[1.0, 1.0]], [1.0, 1.0]).first_disagreement == 1

    def test_curves_of_different_length_are_refused(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            agreement([1.0], [[1.0, 1.0]], [1.0, 1.0])


class Recorder:
    """A step that notes what it was fed; its loss is the mean of the pixels."""

    def __init__(self, log: list[tuple[str, Tensor]], name: str) -> None:
        self.log, self.name = log, name

    def step(
        self, pixels: Tensor, masks: Masks, *, lr: float, weight_decay: float, momentum: float
    ) -> Tensor:
        self.log.append((self.name, pixels))
        return pixels.mean()


def test_contestants_take_turns_on_the_same_batches() -> None:
    log: list[tuple[str, Tensor]] = []
    masks = Masks(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(4, 1, dtype=torch.int64))
    batches = [Batch(torch.rand(2, 3, 4, 4), masks) for _ in range(2)]
    done = []
    curves = train_side_by_side(
        {"a": Contestant(Recorder(log, "a")), "b": Contestant(Recorder(log, "b"), reverse=True)},
        batches,
        lambda step: Hyperparameters(lr=0.1, weight_decay=0.0, momentum=1.0),
        done=lambda: done.append(len(log)),
    )
    assert [name for name, _ in log] == ["a", "b", "b", "a"]
    assert done == [2, 4]
    assert torch.equal(log[0][1].flip(0), log[1][1])
    assert curves["a"].losses == pytest.approx([batch.pixels.mean().item() for batch in batches])
    assert len(curves["b"].seconds) == 2


def test_a_reversed_batch_keeps_every_sample_with_its_masks() -> None:
    context, target = torch.arange(6).view(3, 2), torch.arange(12).view(6, 2)
    batch = Batch(torch.arange(3.0).view(3, 1, 1, 1), Masks(context, target))
    pixels, masks = batch.reversed()
    assert pixels.flatten().tolist() == [2, 1, 0]
    assert masks.context.tolist() == [[4, 5], [2, 3], [0, 1]]
    assert masks.target.tolist() == [[4, 5], [2, 3], [0, 1], [10, 11], [8, 9], [6, 7]]


class FrozenTeacher(IJEPAStep):
    """A step that forgets to move its teacher."""

    def step(
        self, pixels: Tensor, masks: Masks, *, lr: float, weight_decay: float, momentum: float
    ) -> Tensor:
        return super().step(pixels, masks, lr=lr, weight_decay=weight_decay, momentum=1.0)


class WrongBeta(IJEPAStep):
    """A step whose AdamW has another beta."""

    def __init__(self, model: models.IJEPA, *, precision: Precision) -> None:
        super().__init__(model, precision=precision)
        for group in self.optimizer.param_groups:
            group["betas"] = (0.9, 0.99)


@pytest.fixture(scope="module")
def setting() -> Setting:
    torch.manual_seed(0)
    model = models.create("ijepa_vitt8_128", image_size=64, depth=2, predictor_depth=2, predictor_dim=96)
    masks = MultiBlockMasks(8, min_keep=4)
    batches = [Batch(torch.randn(4, 3, 64, 64), masks.sample(4, step)) for step in range(STEPS)]
    return model, batches


@pytest.fixture(scope="module")
def eager(setting: Setting) -> Curves:
    model, batches = setting
    contestants = {
        "float32": Contestant(EagerIJEPAStep(model)),
        "reversed": Contestant(EagerIJEPAStep(model), reverse=True),
        "bfloat16": Contestant(EagerIJEPAStep(model, precision="bfloat16")),
    }
    return train_side_by_side(contestants, batches, _rates)


def _rates(step: int) -> Hyperparameters:
    return Hyperparameters(lr=1e-3, weight_decay=0.05, momentum=0.99)


def _losses(step_class: type[IJEPAStep], precision: Precision, setting: Setting) -> list[float]:
    model, batches = setting
    contestant = Contestant(step_class(copy.deepcopy(model), precision=precision))
    return train_side_by_side({"ours": contestant}, batches, _rates)["ours"].losses


def test_our_step_agrees_with_the_published_one_in_float32(setting: Setting, eager: Curves) -> None:
    ours = _losses(IJEPAStep, "float32", setting)
    found = agreement(ours, [eager["reversed"].losses], eager["float32"].losses)
    assert found.check.passed, found.check.reason


def test_our_step_agrees_with_the_published_one_in_bfloat16(setting: Setting, eager: Curves) -> None:
    ours = _losses(IJEPAStep, "bfloat16", setting)
    found = agreement(ours, [eager["bfloat16"].losses], eager["float32"].losses)
    assert found.check.passed, found.check.reason


@pytest.mark.parametrize("wrong", [FrozenTeacher, WrongBeta])
def test_a_wrong_step_is_found(wrong: type[IJEPAStep], setting: Setting, eager: Curves) -> None:
    found = agreement(_losses(wrong, "float32", setting), [eager["reversed"].losses], eager["float32"].losses)
    assert found.first_disagreement in (1, 2)
