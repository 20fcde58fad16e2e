"""What each of four processes computes: the gradients of LeJEPA's loss over its own images."""

import torch
import torch.distributed as dist
from torch import Tensor

from jepa_fast import models
from jepa_fast.training.lejepa_step import LeJEPAStep

IMAGES = 8


def gradients(group: dist.ProcessGroup | None, mine: slice) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    model = models.create("lejepa_vits8_128", image_size=16, dim=48, num_heads=3, mlp_dim=48, depth=1)
    model = model.double().eval()  # BatchNorm would be one of each process
    crops = torch.randn(2, IMAGES, 3, 16, 16, dtype=torch.float64)
    step = LeJEPAStep(model, num_slices=16)
    step.group = group
    loss = step.loss([crops[:, mine]], None)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def run() -> tuple[Tensor, list[Tensor]]:
    rank, world = dist.get_rank(), dist.get_world_size()
    share = IMAGES // world
    loss, found = gradients(dist.group.WORLD, slice(rank * share, (rank + 1) * share))
    for tensor in (loss, *found):  # as DDP does
        dist.all_reduce(tensor)
        tensor /= world
    return loss, found
