"""What the loss computes, apart from its tensors: the published variants and their parameters."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Variant:
    """How one public implementation reads the formula of README.md; the defaults are those of the package `lejepa`.

    num_slices, num_knots, t_max: its own defaults; None where the caller has to do without.
    two_sided: knots from -t_max to t_max rather than from 0. scaled: whether the statistic is multiplied by N.
    flattened: leading dimensions of x are samples, too, rather than views whose statistics are averaged.
    reduced: whether sums are taken over all processes of a group. standardized: each projection is brought to mean
    0 and deviation 1 first and compared with quantiles of the Gaussian in a Gaussian kernel.
    """

    num_slices: int = 1024
    num_knots: int = 17
    t_max: float | None = 3.0
    two_sided: bool = False
    scaled: bool = True
    flattened: bool = False
    reduced: bool = True
    standardized: bool = False


VARIANTS = {
    "lejepa": Variant(),
    "stable_pretraining": Variant(flattened=True, reduced=False),
    "lightly": Variant(),
    "lewm": Variant(),
    "levljepa": Variant(num_slices=4096),
    "eb_jepa": Variant(num_slices=256, num_knots=10, two_sided=True, scaled=False),
    "h_jepa": Variant(t_max=None, scaled=False, flattened=True, reduced=False, standardized=True),
}


class Settings(NamedTuple):
    """variant: key of `VARIANTS`. t_max: 0 where the variant has none. world_size: processes of the group, or 1.

    averaged_gradients: whether the gradient is to be multiplied by the world size.
    """

    variant: str
    num_slices: int
    num_knots: int
    t_max: float
    world_size: int
    averaged_gradients: bool

    @property
    def form(self) -> Variant:
        return VARIANTS[self.variant]
