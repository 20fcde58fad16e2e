"""A batch in pieces on 2 and 4 processes gives the loss and the gradients of the whole batch on one."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor

from jepa_fast import sigreg_loss
from jepa_fast.bench.measure import check_error

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this PyTorch has no gloo"),
]
WORKER = str(Path(__file__).with_name("worker.py"))
worker = SimpleNamespace(**runpy.run_path(WORKER))


@pytest.fixture(scope="module")
def every_world(spread: Callable[[str], list[Any]]) -> list[dict[int, dict[str, Any]]]:
    return spread(WORKER)


@pytest.fixture(params=[2, 4])
def results(request: pytest.FixtureRequest, every_world: list[Any]) -> tuple[int, list[dict]]:
    """The size of a group and what each of its processes found, by rank."""
    return request.param, [found[request.param] for found in every_world[: request.param]]


def whole(x: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    loss = sigreg_loss(leaf, num_slices=37, seed=7, **options)
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("split", ["even", "uneven", "empty"])
@pytest.mark.parametrize("variant", ["lejepa", "lightly", "lewm", "levljepa", "eb_jepa"])
def test_the_whole_batch(results, implementation: str, split: str, variant: str) -> None:
    _, ranks = results
    expected = whole(worker.batch(dtype=torch.float64), variant=variant)
    found = [rank[f"{implementation} {variant} {split}"] for rank in ranks]
    gradient = torch.cat([rank[1] for rank in found], dim=1)
    for loss, _ in found:
        assert torch.equal(loss, found[0][0])
    if implementation == "reference":
        torch.testing.assert_close(found[0][0], expected[0], rtol=1e-13, atol=0)
        torch.testing.assert_close(gradient, expected[1], rtol=1e-12, atol=1e-15)
    else:
        single = whole(worker.batch(), variant=variant, implementation="native")
        assert check_error((found[0][0], gradient), single, expected).passed


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_stable_pretraining_counts_the_others_but_does_not_sum_them(results, implementation: str) -> None:
    world, ranks = results
    dtype = torch.float32 if implementation == "native" else torch.float64
    for rank, found in enumerate(ranks):
        own = worker.shard(worker.batch(dtype=dtype), worker.SPLITS[world]["even"], rank)
        loss, gradient = whole(own, variant="stable_pretraining", implementation=implementation)
        expected = (world * loss, world * gradient)
        torch.testing.assert_close(found[f"{implementation} stable_pretraining even"], expected)


def test_averaged_gradients(results) -> None:
    world, ranks = results
    for found in ranks:
        assert torch.equal(found["averaged"][0], found["native lejepa uneven"][0])
        torch.testing.assert_close(found["averaged"][1], world * found["native lejepa uneven"][1])


def test_compiled(results) -> None:
    _, ranks = results
    for found in ranks:
        torch.testing.assert_close(found["compiled"], found["native lejepa uneven"], rtol=0, atol=0)


def test_ddp_parameters_receive_the_gradient_of_the_whole_batch(results) -> None:
    _, ranks = results
    model = worker.model()
    loss = sigreg_loss(model(worker.batch(dtype=torch.float64)), num_slices=37, seed=7)
    loss.backward()
    for found in ranks:
        torch.testing.assert_close(found["ddp"], (loss.detach(), model.weight.grad), rtol=1e-12, atol=1e-15)


@pytest.fixture
def alone(tmp_path: Path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def test_a_group_of_one_changes_nothing(alone) -> None:
    x = worker.batch()
    for variant in (*worker.VARIANTS, "h_jepa"):
        expected = whole(x, variant=variant)
        found = whole(x, variant=variant, group=alone, averaged_gradients=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="x: expected at least N = 2 samples, got 1"):
        sigreg_loss(x[:, :1], group=alone)


def test_what_is_no_group_is_named() -> None:
    with pytest.raises(TypeError, match=r"group: expected a torch.distributed.ProcessGroup .*, got int"):
        sigreg_loss(worker.batch(), group=-100)
