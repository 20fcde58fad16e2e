"""The tensors of one step."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

Part = Sequence[Tensor | None]


class Tensors(NamedTuple):
    """What one step works on: one entry per tensor in every list, None where a tensor has no such part.

    A parameter without a gradient is not stepped, but its teacher follows it and its copies are written.
    """

    parameters: Sequence[Tensor]
    exp_avgs: Part
    exp_avg_sqs: Part
    steps: Part
    teachers: Part
    copies: Part
    teacher_copies: Part
    gradients: Part
    groups: Sequence[int]

    def lasting(self) -> Iterator[tuple[str, Part]]:
        """(name, list) of everything but the gradients, in the order of the table's columns."""
        return zip(self._fields[:7], self[:7], strict=True)
