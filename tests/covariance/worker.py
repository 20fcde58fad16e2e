"""What one process of test_distributed.py computes; run by itself, so that every process imports it afresh."""

import sys
from datetime import timedelta
from pathlib import Path

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


def run(rank: int, world: int, folder: Path) -> None:
    group = dist.group.WORLD
    results = {}
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
    results["training"] = training(rank, world, group)
    torch.save(results, folder / f"{rank}.pt")


def dominated(rank: int, world: int, group: object) -> tuple[torch.Tensor, torch.Tensor]:
    """One feature outweighs the rest: the Gram form changes to float64 on every process."""
    first = whole_batch(40, torch.float32)[0]
    first[:, 3] *= 1000.0
    mine = first.chunk(world)[rank].clone().requires_grad_()
    loss = jepa_fast.covariance_loss(mine, group=group)
    return loss.detach(), torch.autograd.grad(loss, mine)[0]


def errors(group: object) -> list[str]:
    """One row in all, and a gather of nothing."""
    messages = []
    for implementation in ("native", "reference"):
        rows = 1 if dist.get_rank() == 0 else 0
        try:
            jepa_fast.variance_loss(torch.zeros(rows, 3), group=group, implementation=implementation)
        except ValueError as error:
            messages.append(str(error))
    assert collective.gather(torch.zeros(0, 3), group).shape == (dist.get_world_size(), 0, 3)
    assert algorithm.MOST_CANCELLATION > 1
    return messages


def training(rank: int, world: int, group: object) -> torch.Tensor:
    """The weight of a projector's gradient under DistributedDataParallel."""
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 24)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    views = [view.chunk(world)[rank] for view in whole_batch(40, torch.float32)]
    first, second = wrapped(torch.cat(views)).chunk(2)
    (world * jepa_fast.vicreg_loss(first, second, group=group)).backward()
    return model.weight.grad


if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    try:
        run(rank, world, folder)
    finally:
        dist.destroy_process_group()
