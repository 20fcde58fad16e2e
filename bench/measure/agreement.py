"""Whether two training runs, started from one state and fed the same batches, stay together step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from jepa_fast.bench.measure.error import ErrorCheck

# Training amplifies rounding, so the budget of a step is what rounding alone was seen to do up to that step, in
# peers that compute the same thing. Two runs that differ by rounding alone drift like two random walks: over 21
# small trainings of 30 to 40 steps one strayed up to 2.8 times as far as another had, hence 4 and not 2.
TIMES_PEER = 4.0
FLOOR_ULPS = 8.0  # of float32, which the loss is


@dataclass(frozen=True)
class Agreement:
    """Relative distances to the reference curve, one per step, and how far they were allowed to be.

    peer: of the farthest peer.
    """

    ours: list[float]
    peer: list[float]
    budget: list[float]

    @property
    def first_disagreement(self) -> int | None:
        """The first step whose distance is over its budget, None if the curves agree."""
        steps = zip(self.ours, self.budget, strict=True)
        return next((step for step, (distance, budget) in enumerate(steps) if not distance <= budget), None)

    @property
    def ratio(self) -> float:
        """Largest distance of ours over the peers', which counts as at least one ulp."""
        return max(self.ours) / max(*self.peer, torch.finfo(torch.float32).eps)

    @property
    def check(self) -> ErrorCheck:
        """The same as the error check of a case: our largest distance, the peer's, and the final budget."""
        step = self.first_disagreement
        reason = ""
        if step is not None:
            reason = (
                f"loss of step {step + 1}: relative difference {self.ours[step]:.1e} is over its budget of "
            )
            reason += f"{self.budget[step]:.1e}"
        return ErrorCheck(max(self.ours), max(self.peer), self.budget[-1], self.ratio, reason)


def agreement(
    ours: Sequence[float], peers: Sequence[Sequence[float]], reference: Sequence[float]
) -> Agreement:
    """Hold the losses of `ours` to those of `reference`; `peers` show what rounding does.

    In float32 the reference is eager PyTorch and the peer the same program on the same samples in another
    order: the mathematics is equal, the order of summation is not. In bfloat16 the reference is eager float32
    and the peers are eager bfloat16. A loss that is not a number disagrees.
    """
    floor = FLOOR_ULPS * torch.finfo(torch.float32).eps
    distances = [[abs(a - b) / abs(b) for a, b in zip(run, reference, strict=True)] for run in (ours, *peers)]
    farthest_peer = [max(step) for step in zip(*distances[1:], strict=True)]
    budget = [TIMES_PEER * worst + floor for worst in accumulate(farthest_peer, max)]
    return Agreement(distances[0], farthest_peer, budget)
