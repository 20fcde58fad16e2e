"""What is computed, apart from its tensors, and the names under which the codebases differ."""

from typing import Any, NamedTuple

from torch import Tensor

VICREG, BARLOW = "vicreg", "barlow"

# For the covariance sum the divisor is D, or D(D - 1), the number of pairs; the variance terms of two views are
# halved, or summed. lightly and stable-pretraining follow VICReg's own code.
PAIRS = {"vicreg": False, "eb_jepa": True, "lightly": False, "solo_learn": False, "stable_pretraining": False}
VARIANCE_HALVED = {
    "vicreg": True,
    "eb_jepa": False,
    "lightly": True,
    "solo_learn": False,
    "stable_pretraining": True,
}
DIVISORS = {"dim": False, "pairs": True, **PAIRS}
# Barlow Twins: (factor of the whole loss, whether features are divided by the unbiased deviation plus eps instead
# of by the root of the biased variance plus eps).
BARLOW_FORMS = {
    "barlow_twins": (1.0, False),
    "lightly": (1.0, False),
    "solo_learn": (0.025, False),
    "stable_pretraining": (1.0, True),
}


class Settings(NamedTuple):
    """The weights of one loss, everything that does not depend on N and D folded into them.

    form: vicreg, for invariance * mse + variance * sum of hinges + covariance * sum of covariance terms;
    barlow, for covariance * (diagonal term + off_diagonal * off-diagonal term).
    pairs: divide the squared covariances by D(D - 1) instead of D. unbiased: of Barlow Twins' normalisation.
    """

    form: str
    invariance: float
    variance: float
    covariance: float
    off_diagonal: float
    eps: float
    pairs: bool
    unbiased: bool

    def covariance_divisor(self, features: int) -> int:
        """What the sum of squared covariances is divided by."""
        return features * (features - 1) if self.pairs else features


class Result(NamedTuple):
    """What an implementation returns.

    loss: scalar. deviation: [views, D], the square roots of the unbiased variances. rank: [views], or [1] for
    Barlow Twins; NaN where no covariances were formed. gradients: for a loss whose upstream gradient is 1.
    """

    loss: Tensor
    deviation: Tensor
    rank: Tensor
    gradients: tuple[Tensor, ...] | None


Views = tuple[Tensor, ...]
Group = Any  # torch.distributed.ProcessGroup, which a torch without distributed does not have
