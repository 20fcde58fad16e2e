"""Masked attention on the CPU in C++ (cpu.cpp)."""

from typing import Any

import torch
from torch import Tensor

from ..runtime import native
from .call import Call
from .joint import are_parts
from .masks import BlockSparse

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
# As cpu.cpp numbers them, and how many tensors and integers it takes of a mask at most.
_KINDS = {"varlen": 1, "block_causal": 2, "block_sparse": 3}
_LISTS, _NUMBERS = 5, 4


def why_not(call: Call, query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    if query.dtype not in _TYPES:
        return [f"the tensors are {query.dtype}; the kernel takes float32, bfloat16 and float16"]
    return []


def forward(call: Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty(query.shape, dtype=query.dtype)
    lse = torch.empty((*query.shape[:-3], query.shape[-2], query.shape[-3]), dtype=torch.float32)
    tensors = [_with_samples(x) for x in (query, key, value, out)]
    native.function("attention_forward")(*tensors, lse, *_arguments(call))
    return out, lse


def backward(
    call: Call, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = _gradients(query, key, value)
    before = [_with_samples(x) for x in (query, key, value, out)]
    after = [_with_samples(x) for x in (grad_out, dq, dk, dv)]
    native.function("attention_backward")(*before, lse, *after, *_arguments(call))
    return dq, dk, dv


def _gradients(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Not filled. What lies side by side in one tensor has gradients that do, so that they need not be put together."""
    if are_parts(query, key, value):
        return _parts(3, query)
    dq = torch.empty(query.shape, dtype=query.dtype)
    if are_parts(key, value):
        return dq, *_parts(2, key)
    return dq, torch.empty(key.shape, dtype=key.dtype), torch.empty(value.shape, dtype=value.dtype)


def _parts(count: int, like: Tensor) -> tuple[Tensor, ...]:
    return torch.empty((*like.shape[:-2], count, *like.shape[-2:]), dtype=like.dtype).unbind(-3)


def _with_samples(x: Tensor) -> Tensor:
    return x if x.ndim == 4 else x.unsqueeze(0)


def _arguments(call: Call) -> list[Any]:
    arguments: list[Any] = [call.scale]
    for tables in (call.rope_query, call.rope_key):
        arguments += [None, None, 0] if tables is None else tables
    lists: list[Tensor | None] = []
    numbers: list[int] = []
    if call.mask is not None:
        lists, numbers = [*call.mask.tensors()[:_LISTS]], call.mask.integers()
        if isinstance(call.mask, BlockSparse):
            numbers = numbers[2:]  # the lengths are those of query and key
    arguments.append(0 if call.mask is None else _KINDS[call.mask.kind])
    arguments += lists + [None] * (_LISTS - len(lists)) + numbers + [0] * (_NUMBERS - len(numbers))
    return [*arguments, torch.get_num_threads()]
