"""Attention on the GPU: the launches that serve a call. The kernels are in device/, their choice in tiling.py."""

# mypy: allow-untyped-defs
import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ..rope.tables import Tables
from ..runtime.launch import launch
from . import tiling
from .call import Call
from .configurations import DELTA_ROWS, TYPES, configurations, delta, pick
from .masks import BlockSparse
from .problem import FAR, Problem, regular, strides

__all__ = ["backward", "configurations", "forward", "why_not"]

_LOG2_E = math.log2(math.e)
_SPARSE_BLOCK = 128  # the largest tile: one tile lies in one block of a sparse mask


def why_not(call: Call, query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    reasons = []
    if query.dtype not in TYPES:
        reasons.append(f"the tensors are {query.dtype}; the kernel takes float32, bfloat16 and float16")
    head_dim = query.shape[-1]
    if head_dim % tiling.HEAD_GRANULE or head_dim > tiling.MAX_HEAD_DIM:
        reasons.append(
            f"head_dim is {head_dim}; the kernel takes multiples of {tiling.HEAD_GRANULE} up to {tiling.MAX_HEAD_DIM}"
        )
    if not 0.0 < call.scale < math.inf:
        reasons.append(f"scale is {call.scale}; the kernel takes finite numbers above 0")
    if isinstance(call.mask, BlockSparse) and any(size % _SPARSE_BLOCK for size in call.mask.block_size):
        reasons.append(f"block_size is {call.mask.block_size}; the kernel takes multiples of {_SPARSE_BLOCK}")
    if max(query.shape[-3], key.shape[-3]) >= FAR:
        reasons.append(f"a sequence may be longer than the kernel's limit of {FAR} tokens")
    return reasons


def forward(call: Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    problem = Problem.of(call, query, key)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(problem.statistics_shape, dtype=torch.float32, device=query.device)
    kernel = tiling.forward_kernel(problem.form)
    rotates = kernel.endswith("_rope")
    if problem.form.rope and not rotates:
        query, key = _rotated(call, query, key)
    query, key, value = regular(query), regular(key), regular(value)
    tables, table_rows = _tables(call if rotates else None, lse)
    configuration, tile = pick(kernel, query.dtype, problem.form)
    tiles = triton.cdiv(problem.form.longest_q, tile.block_m)
    launch(
        configuration,
        (tiles * problem.samples * problem.heads_q,),
        *(query, key, value, out, lse),
        *tables,
        *problem.lists(of_queries=False),
        *(*strides(query), *strides(key), *strides(value)),
        *problem.sizes,
        problem.sample_q,
        *table_rows,
        tiles,
        *problem.numbers,
        call.scale * _LOG2_E,
    )
    return out, lse


def backward(
    call: Call, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    problem = Problem.of(call, query, key)
    grad_query, grad_key, grad_value = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)
    )
    deltas = torch.empty_like(lse)
    kernels = tiling.backward_kernels(problem.form)
    rotates = kernels[0].endswith("_rope")
    if problem.form.rope and not rotates:
        query, key = _rotated(call, query, key)
    query, key, value, grad_out, out = (
        *(regular(x) for x in (query, key, value, grad_out)),
        out.contiguous(),
    )
    tensors = (query, key, value, grad_out, lse)
    steps = (*strides(query), *strides(key), *strides(value), *strides(grad_out))
    scales = (call.scale, call.scale * _LOG2_E)
    if len(kernels) == 1:
        tables, table_rows = _tables(call if rotates else None, lse)
        configuration, _ = pick(kernels[0], query.dtype, problem.form)
        launch(
            configuration,
            (problem.samples * problem.heads_k,),
            *tensors,
            *(out, deltas, grad_query, grad_key, grad_value),
            *tables,
            *problem.lists(of_queries=False),
            *steps,
            *problem.sizes,
            *(problem.sample_q, problem.sample_k),
            *table_rows,
            *problem.numbers,
            *scales,
        )
    else:
        _form_delta(out, grad_out, deltas)
        for_keys, for_queries = kernels
        configuration, tile = pick(for_keys, query.dtype, problem.form)
        tiles = triton.cdiv(problem.form.longest_k, tile.block_n)
        launch(
            configuration,
            (tiles * problem.samples * problem.heads_k,),
            *tensors,
            *(deltas, grad_key, grad_value),
            *problem.lists(of_queries=True),
            *steps,
            *problem.sizes,
            *(problem.sample_q, problem.sample_k),
            tiles,
            *problem.numbers,
            *scales,
        )
        configuration, tile = pick(for_queries, query.dtype, problem.form)
        tiles = triton.cdiv(problem.form.longest_q, tile.block_m)
        launch(
            configuration,
            (tiles * problem.samples * problem.heads_q,),
            *tensors,
            *(deltas, grad_query),
            *problem.lists(of_queries=False),
            *steps,
            *problem.sizes,
            problem.sample_q,
            tiles,
            *problem.numbers,
            *scales,
        )
    if problem.form.rope and not rotates:
        grad_query, grad_key = _rotated(call, grad_query, grad_key, transposed=True)
    return grad_query, grad_key, grad_value


def _form_delta(out: Tensor, grad_out: Tensor, deltas: Tensor) -> None:
    samples = out.shape[0] if out.ndim == 4 else 1
    length, heads, head_dim = out.shape[-3:]
    launch(
        delta(out.dtype, head_dim),
        (triton.cdiv(length, DELTA_ROWS) * samples * heads,),
        *(out, grad_out, deltas),
        *strides(grad_out),
        *(heads, length),
    )


def _rotated(call: Call, query: Tensor, key: Tensor, transposed: bool = False) -> tuple[Tensor, Tensor]:
    """In a pass of its own; query and key in one launch where they have the same positions."""
    from ..rope import triton_rope

    assert call.rope_query is not None
    assert call.rope_key is not None
    if _same(call.rope_query, call.rope_key) and query.shape[:-2] == key.shape[:-2]:
        query, key = triton_rope.rotate(call.rope_query, [query, key], transposed)
        return query, key
    (query,) = triton_rope.rotate(call.rope_query, [query], transposed)
    (key,) = triton_rope.rotate(call.rope_key, [key], transposed)
    return query, key


def _same(a: Tables, b: Tables) -> bool:
    return a.cos.data_ptr() == b.cos.data_ptr() and a.sin.data_ptr() == b.sin.data_ptr()


def _tables(call: Call | None, unread: Tensor) -> tuple[Sequence[Tensor], tuple[int, int]]:
    """The tables of query and key, and their rows from a sample to the next; `unread` in their place without a call."""
    if call is None or call.rope_query is None or call.rope_key is None:
        return (unread,) * 4, (0, 0)
    (cos_q, sin_q, rows_q), (cos_k, sin_k, rows_k) = call.rope_query, call.rope_key
    return (cos_q, sin_q, cos_k, sin_k), (rows_q, rows_k)
