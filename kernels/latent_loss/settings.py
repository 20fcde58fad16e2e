"""What the loss computes, apart from its tensors."""

import math
from typing import NamedTuple

# Below float32's smallest normal number 0.5 / beta leaves its range; the quadratic part is then a point anyway.
_SMALLEST_BETA = 2.0**-126


class Settings(NamedTuple):
    """kind: smooth_l1, l1 or mse. beta: where smooth-L1 turns linear. eps: added to the target's variance."""

    kind: str
    beta: float
    normalize_target: bool
    eps: float

    def penalty(self) -> tuple[float, float, float]:
        """(beta, quadratic, offset) of the one form that kernels evaluate for every kind:

        l(x) = quadratic * x^2 where |x| < beta, else |x| - offset
        """
        if self.kind == "mse":
            return math.inf, 1.0, 0.0
        if self.kind == "l1" or self.beta < _SMALLEST_BETA:
            return 0.0, 0.0, 0.0
        return self.beta, 0.5 / self.beta, 0.5 * self.beta
