"""What the drop-in replaces and PyPI carries, in our own words: lightly's SIGReg as a module."""

import torch
from torch import Tensor, nn

from jepa_fast.bench.baselines.sigreg import sigreg


class SIGReg(nn.Module):
    """Constructor, attributes and order of operators of lightly's module, which `optimize_` takes for it."""

    t: Tensor

    def __init__(self, *, knots: int = 17, t_max: float = 3.0, num_vectors: int = 1024) -> None:
        super().__init__()
        self.num_vectors, self.gather_distributed = num_vectors, False
        t = torch.linspace(0, t_max, knots)
        phi = torch.exp(-t.square() / 2)
        width = torch.full((knots,), 2 * t_max / (knots - 1))
        width[[0, -1]] /= 2
        for name, value in (("t", t), ("phi", phi), ("weights", width * phi)):
            self.register_buffer(name, value)

    def forward(self, proj: Tensor) -> Tensor:
        directions = torch.randn(proj.shape[-1], self.num_vectors, device=proj.device, dtype=proj.dtype)
        directions = directions / directions.norm(p=2, dim=0)
        return sigreg(proj, directions, num_knots=len(self.t))


def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    """One parameter after the other, as the published loops do."""
    with torch.no_grad():
        for online, average in zip(model.parameters(), model_ema.parameters(), strict=True):
            average.data.mul_(m).add_((1 - m) * online.detach().data)
