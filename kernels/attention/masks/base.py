"""What every mask has in common."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

MOST = 1 << 30


class Mask(Protocol):
    """Which keys a query sees. Masks are immutable; their tensors lie on the device of the query.

    kind: the mask's name inside a compiled graph, which carries a mask as tensors and integers.
    packed: whether query, key and value are packed, `[tokens_total, heads, head_dim]`.
    """

    kind: ClassVar[str]
    packed: ClassVar[bool]

    def tensors(self) -> list[Tensor]: ...

    def integers(self) -> list[int]: ...

    @classmethod
    def rebuild(cls, tensors: Sequence[Tensor], integers: Sequence[int]) -> Any:
        """The mask again, from what `tensors` and `integers` gave; nothing is checked."""

    def check(self, query: Tensor, key: Tensor) -> None:
        """Raise ValueError or TypeError if the mask does not fit. Values on a device are not looked at."""

    def dense(self, query_length: int, key_length: int, device: torch.device) -> Tensor:
        """The mask as bool `[..., query_length, key_length]`, True where a query sees a key."""


def check_integer(name: str, value: object, least: int = 0) -> None:
    """Raise unless `value` is an integer from `least` to 2**30, below which sums of two fit into 32 bits."""
    if isinstance(value, torch.SymInt):
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not least <= value <= MOST:
        raise ValueError(f"{name}: expected {least} to 2**30, got {value}")


def device_error(name: str, tensor: Tensor, query: Tensor) -> ValueError:
    return ValueError(f"{name}: expected device {query.device} of query, got {tensor.device}")
