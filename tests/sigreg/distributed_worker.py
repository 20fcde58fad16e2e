"""One process of test_distributed.py: `python distributed_worker.py RANK WORLD STORE OUTPUT`.

Writes {case: (loss, gradient of the own rows)} to OUTPUT.
"""

import sys
from datetime import timedelta

import torch
import torch.distributed
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


def run(rank: int, world: int) -> dict[str, tuple[Tensor, Tensor]]:
    group = torch.distributed.group.WORLD
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

    ddp = DistributedDataParallel(model())
    own = shard(batch(dtype=torch.float64), SPLITS[world]["even"], rank)
    loss = sigreg_loss(ddp(own), num_slices=37, seed=7, group=group, averaged_gradients=True)
    loss.backward()
    found["ddp"] = (loss.detach(), ddp.module.weight.grad)
    return found


def main() -> None:
    rank, world = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{sys.argv[3]}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    try:
        torch.save(run(rank, world), sys.argv[4])
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
