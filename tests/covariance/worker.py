"""What one process of test_distributed.py computes; tests/conftest.py runs it."""

import torch
import torch.distributed as dist

import jepa_fast
from jepa_fast.kernels.covariance import algorithm
from jepa_fast.kernels.runtime import collective

# Rows of each process for two and for four of them; the shapes take the Gram and the tiled form.
SPLITS = {2: ([9, 9], [15, 3], [18, 0]), 4: ([5, 5, 4, 4], [1, 9, 0, 8], [0, 0, 18, 0])}
FEATURES = (40, 7)
LOSSES = {
    "covariance": (jepa_fast.covariance_loss, 1, {}),
    "variance": (jepa_fast.variance_loss, 1, {}),
    "vicreg": (jepa_fast.vicreg_loss, 2, {}),
    "vicreg_eb_jepa": (jepa_fast.vicreg_loss, 2, {"normalization": "eb_jepa"}),
    "barlow": (jepa_fast.barlow_twins_loss, 2, {}),
    "barlow_unbiased": (jepa_fast.barlow_twins_loss, 2, {"normalization": "stable_pretraining"}),
}
KINDS = (
    ("native", torch.float32),
    ("native", torch.bfloat16),
    ("native", torch.float16),
    ("reference", torch.float64),
)


def whole_batch(features: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(features)
    first = torch.randn(18, features, generator=generator) * torch.linspace(0.5, 1.5, features) + 3.0
    second = first + 0.5 * torch.randn(18, features, generator=generator)
    return first.to(dtype), second.to(dtype)


def run() -> dict[int, dict[object, object]]:
    """What this process found in a group of 4 processes and, if it is one of them, of 2: by size."""
    pair = dist.new_group([0, 1])
    groups = {4: dist.group.WORLD, 2: pair}
    return {world: work(group) for world, group in groups.items() if dist.get_rank() < world}


def work(group: dist.ProcessGroup) -> dict[object, object]:
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    results: dict[object, object] = {}
    for split in SPLITS[world]:
        start = sum(split[:rank])
        mine = slice(start, start + split[rank])
        for features in FEATURES:
            for implementation, dtype in KINDS:
                for name, (loss, count, options) in LOSSES.items():
                    views = [
                        view[mine].clone().requires_grad_() for view in whole_batch(features, dtype)[:count]
                    ]
                    value, statistics = loss(
                        *views, **options, group=group, implementation=implementation, return_statistics=True
                    )
                    gradients = torch.autograd.grad(2.0 * value, views)
                    key = (tuple(split), features, implementation, dtype, name)
                    results[key] = (value.detach(), gradients, statistics)
    results["dominated"] = dominated(rank, world, group)
    results["errors"] = errors(group)
    results["averaged"] = averaged(rank, world, group)
    results["training"] = training(rank, world, group)
    return results


def dominated(rank: int, world: int, group: dist.ProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """One feature outweighs the rest: the Gram form changes to float64 on every process."""
    first = whole_batch(40, torch.float32)[0]
    first[:, 3] *= 1000.0
    mine = first.chunk(world)[rank].clone().requires_grad_()
    loss = jepa_fast.covariance_loss(mine, group=group)
    return loss.detach(), torch.autograd.grad(loss, mine)[0]


def errors(group: dist.ProcessGroup) -> list[str]:
    """One row in all, and a gather of nothing."""
    messages = []
    for implementation in ("native", "reference"):
        rows = 1 if dist.get_rank(group) == 0 else 0
        try:
            jepa_fast.variance_loss(torch.zeros(rows, 3), group=group, implementation=implementation)
        except ValueError as error:
            messages.append(str(error))
    assert collective.gather(torch.zeros(0, 3), group).shape == (dist.get_world_size(group), 0, 3)
    assert algorithm.MOST_CANCELLATION > 1
    return messages


def averaged(rank: int, world: int, group: dist.ProcessGroup) -> list[tuple[torch.Tensor, ...]]:
    """The loss and the gradient of each loss as they are, and for processes whose gradients are averaged."""
    found = []
    for loss, count, options in LOSSES.values():
        for choice in (False, True):
            views = [v.chunk(world)[rank].clone() for v in whole_batch(40, torch.float32)[:count]]
            leaves = [view.requires_grad_() for view in views]
            value = loss(*leaves, **options, group=group, averaged_gradients=choice)
            found.append((value.detach(), *torch.autograd.grad(value, leaves)))
    return found


def training(rank: int, world: int, group: dist.ProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the gradient of a projector's weight under DistributedDataParallel."""
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 24).double()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, process_group=group)
    views = [view.chunk(world)[rank] for view in whole_batch(40, torch.float64)]
    first, second = wrapped(torch.cat(views)).chunk(2)
    loss = jepa_fast.vicreg_loss(first, second, group=group, averaged_gradients=True)
    loss.backward()
    return loss.detach(), model.weight.grad
