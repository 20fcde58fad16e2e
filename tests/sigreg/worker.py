"""What one process of test_distributed.py computes; tests/conftest.py runs it."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from jepa_fast import sigreg_loss

ROWS, FEATURES = 24, 6
SPLITS = {
    2: {"even": (12, 12), "uneven": (5, 19), "empty": (24, 0)},
    4: {"even": (6, 6, 6, 6), "uneven": (1, 2, 11, 10), "empty": (0, 9, 0, 15)},
}
VARIANTS = ("lejepa", "lightly", "lewm", "levljepa", "eb_jepa", "stable_pretraining")


def batch(views: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """The whole batch [views, ROWS, FEATURES]."""
    return torch.randn(views, ROWS, FEATURES, generator=torch.Generator().manual_seed(3)).to(dtype)


def shard(whole: Tensor, split: tuple[int, ...], rank: int) -> Tensor:
    """Rows of one rank."""
    return whole.split(split, dim=1)[rank].contiguous()


def model() -> torch.nn.Linear:
    torch.manual_seed(5)
    return torch.nn.Linear(FEATURES, FEATURES).double()


def run() -> dict[int, dict[str, tuple[Tensor, Tensor]]]:
    """What this process found in a group of 4 processes and, if it is one of them, of 2: by size."""
    pair = dist.new_group([0, 1])
    groups = {4: dist.group.WORLD, 2: pair}
    return {world: work(group) for world, group in groups.items() if dist.get_rank() < world}


def work(group: dist.ProcessGroup) -> dict[str, tuple[Tensor, Tensor]]:
    """{case: (loss, gradient of the own rows)}."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    found = {}

    def record(name: str, x: Tensor, **options: object) -> None:
        leaf = x.clone().requires_grad_()
        loss = sigreg_loss(leaf, num_slices=37, seed=7, group=group, **options)
        loss.backward()
        found[name] = (loss.detach(), leaf.grad)

    for name, split in SPLITS[world].items():
        for implementation, dtype in (("native", torch.float32), ("reference", torch.float64)):
            x = shard(batch(dtype=dtype), split, rank)
            for variant in VARIANTS:
                if variant == "stable_pretraining" and name != "even":
                    continue
                options = {"variant": variant, "implementation": implementation}
                record(f"{implementation} {variant} {name}", x, **options)
    x = shard(batch(), SPLITS[world]["uneven"], rank)
    record("averaged", x, averaged_gradients=True)

    compiled = torch.compile(
        lambda y: sigreg_loss(y, num_slices=37, seed=7, group=group), fullgraph=True, backend="aot_eager"
    )
    leaf = x.clone().requires_grad_()
    loss = compiled(leaf)
    loss.backward()
    found["compiled"] = (loss.detach(), leaf.grad)

    ddp = DistributedDataParallel(model(), process_group=group)
    own = shard(batch(dtype=torch.float64), SPLITS[world]["even"], rank)
    loss = sigreg_loss(ddp(own), num_slices=37, seed=7, group=group, averaged_gradients=True)
    loss.backward()
    found["ddp"] = (loss.detach(), ddp.module.weight.grad)
    return found
