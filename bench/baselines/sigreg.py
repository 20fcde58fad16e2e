"""SIGReg as published training code writes it: every phase, cosine and sine of [N, slices, knots] in memory."""

import torch
from torch import Tensor


def unit_directions(features: int, slices: int, seed: int, device: torch.device) -> Tensor:
    """Gaussian columns [D, M] divided by their length, drawn anew for each step."""
    generator = torch.Generator(device=device).manual_seed(seed)
    drawn = torch.randn(features, slices, generator=generator, device=device)
    return drawn / drawn.norm(dim=0)


def sigreg(x: Tensor, directions: Tensor, *, num_knots: int = 17, t_max: float = 3.0) -> Tensor:
    """LeJEPA's order of work on x [..., N, D]: project, take cosine and sine at every knot, average, integrate."""
    knots = torch.linspace(0.0, t_max, num_knots, dtype=directions.dtype, device=x.device)
    target = torch.exp(-0.5 * knots**2)
    spacing = t_max / (num_knots - 1)
    weights = torch.full_like(knots, 2.0 * spacing)
    weights[0] = weights[-1] = spacing
    phases = (x @ directions)[..., None] * knots
    real, imaginary = phases.cos().mean(dim=-3), phases.sin().mean(dim=-3)
    statistic = ((real - target) ** 2 + imaginary**2) @ (weights * target)
    return (statistic * x.shape[-2]).mean()
