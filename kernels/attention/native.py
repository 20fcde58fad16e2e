"""Masked attention on the CPU in C++ (cpu.cpp)."""

from torch import Tensor

from .call import Call


def why_not(call: Call, query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    return ["not built"]
