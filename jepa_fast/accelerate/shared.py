"""Values that are formed once from a tensor which all layers of a model are given."""

import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class Shared(Generic[Value]):
    """Keeps what was made of a tensor as long as the tensor lives and nobody writes to it.

    Under torch.compile nothing is kept: a graph that found or filled the store would be compiled anew at the next call.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Tensor], int, dict[Hashable, Value]]] = {}

    def get(self, tensor: Tensor, key: Hashable, make: Callable[[], Value]) -> Value:
        if torch.compiler.is_compiling() or tensor.is_inference():  # which counts no versions
            return make()
        place = id(tensor)
        kept = self._kept.get(place)
        if kept is None or kept[0]() is not tensor or kept[1] != tensor._version:
            reference = weakref.ref(tensor, lambda gone: self._forget(place, gone))
            kept = self._kept[place] = (reference, tensor._version, {})
        values = kept[2]
        if key not in values:
            values[key] = make()
        return values[key]

    def _forget(self, place: int, gone: "weakref.ref[Tensor]") -> None:
        kept = self._kept.get(place)
        if kept is not None and kept[0] is gone:
            del self._kept[place]
