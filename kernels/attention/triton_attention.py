"""Attention on the GPU: which kernel with which tile serves a call, and its launch. The kernels are in device/."""

# mypy: allow-untyped-defs
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..rope.tables import Tables
from ..runtime.configuration import KernelConfiguration
from ..runtime.launch import launch
from . import tiling
from .call import Call
from .device import forward as forward_device
from .device import gradients, mask, whole
from .masks import BlockCausal, BlockSparse, Mask, Varlen

_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_LOG2_E = math.log2(math.e)
_FAR = 2**30  # tokens: longer than any sequence, and two of them still fit in 32 bits
_SPARSE_BLOCK = 128  # the largest tile: one tile lies in one block of a sparse mask
_MAX_TOKEN_STRIDE = 2**31 // 256  # elements: a tile's offsets, over 128 rows, then fit in 32 bits
_OCTET = 8  # strides are passed in these units, see device/tiles.py
_DELTA_ROWS = 32

_KERNELS = {
    "forward": forward_device.attention_forward_kernel,
    "query": gradients.attention_query_gradient_kernel,
    "key": gradients.attention_key_gradient_kernel,
    "whole": whole.attention_whole_gradient_kernel,
}


def why_not(call: Call, query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    reasons = []
    if query.dtype not in _TYPES:
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
    if max(query.shape[-3], key.shape[-3]) >= _FAR:
        reasons.append(f"a sequence may be longer than the kernel's limit of {_FAR} tokens")
    return reasons


def forward(call: Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    problem = _Problem.of(call, query, key)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(problem.statistics_shape, dtype=torch.float32, device=query.device)
    name = "forward_sparse" if problem.sparse else "forward"
    if problem.max_q <= tiling.short(query.shape[-1]) and problem.has("forward_short"):
        name = "forward_short"
    rope = problem.rope_in_kernel and problem.has(f"{name}_rope")
    if problem.rope and not rope:
        query, key = _rotated(call, query, key)
    configuration, tile = _pick(name + ("_rope" if rope else ""), query.dtype, *problem.form)
    tiles = triton.cdiv(problem.max_q, tile.block_m)
    launch(
        configuration,
        (tiles * problem.samples * problem.heads_q,),
        *(query := _regular(query), key := _regular(key), value := _regular(value)),
        out,
        lse,
        *_tables(call if rope else None, lse),
        *problem.lists(of_queries=False),
        *_strides(query),
        *_strides(key),
        *_strides(value),
        *problem.sizes,
        problem.sample_q,
        *_table_rows(call if rope else None),
        tiles,
        *problem.numbers,
        call.scale * _LOG2_E,
    )
    return out, lse


def backward(
    call: Call, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    problem = _Problem.of(call, query, key)
    grad_query, grad_key, grad_value = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)
    )
    delta = torch.empty_like(lse)
    rope = problem.rope_in_kernel and problem.has("whole_gradient_rope")
    whole = rope or (max(problem.max_q, problem.max_k) <= tiling.WHOLE and problem.has("whole_gradient"))
    if problem.rope and not rope:
        query, key = _rotated(call, query, key)
    query, key, value, grad_out = (_regular(x) for x in (query, key, value, grad_out))
    out = out.contiguous()
    strides = (*_strides(query), *_strides(key), *_strides(value), *_strides(grad_out))
    tensors = (query, key, value, grad_out, lse)
    scales = (call.scale, call.scale * _LOG2_E)
    if whole:
        configuration, _ = _pick("whole_gradient" + ("_rope" if rope else ""), query.dtype, *problem.form)
        launch(
            configuration,
            (problem.samples * (problem.heads_q // problem.group),),
            *tensors,
            out,
            delta,
            *(grad_query, grad_key, grad_value),
            *_tables(call if rope else None, lse),
            *problem.lists(of_queries=False),
            *strides,
            *problem.sizes,
            *(problem.sample_q, problem.sample_k),
            *_table_rows(call if rope else None),
            *problem.numbers,
            *scales,
        )
    else:
        _delta(out, grad_out, delta)
        sparse = "_sparse" if problem.sparse else ""
        configuration, tile = _pick(f"key_gradient{sparse}", query.dtype, *problem.form)
        tiles = triton.cdiv(problem.max_k, tile.block_n)
        launch(
            configuration,
            (tiles * problem.samples * (problem.heads_q // problem.group),),
            *tensors,
            delta,
            *(grad_key, grad_value),
            *problem.lists(of_queries=True),
            *strides,
            *problem.sizes,
            *(problem.sample_q, problem.sample_k),
            tiles,
            *problem.numbers,
            *scales,
        )
        configuration, tile = _pick(f"query_gradient{sparse}", query.dtype, *problem.form)
        tiles = triton.cdiv(problem.max_q, tile.block_m)
        launch(
            configuration,
            (tiles * problem.samples * problem.heads_q,),
            *tensors,
            delta,
            grad_query,
            *problem.lists(of_queries=False),
            *strides,
            *problem.sizes,
            problem.sample_q,
            tiles,
            *problem.numbers,
            *scales,
        )
    if problem.rope and not rope:
        grad_query, grad_key = _rotated(call, grad_query, grad_key, transposed=True)
    return grad_query, grad_key, grad_value


def _delta(out: Tensor, grad_out: Tensor, delta: Tensor) -> None:
    samples = out.shape[0] if out.ndim == 4 else 1
    length, heads, head_dim = out.shape[-3:]
    launch(
        _delta_configuration(out.dtype, head_dim),
        (triton.cdiv(length, _DELTA_ROWS) * samples * heads,),
        *(out, grad_out, delta),
        *_strides(grad_out),
        *(heads, length),
    )


class _Problem(NamedTuple):
    """A call in the numbers that kernels take.

    sample_q, sample_k: rows from a sample to the next, 0 where samples are packed.
    sizes: heads of the query, heads that read one head of the key, and rows of the tensors.
    """

    mask: Mask | None
    rope: bool
    samples: int
    heads_q: int
    group: int
    max_q: int
    max_k: int
    sample_q: int
    sample_k: int
    sizes: tuple[int, int, int, int]
    statistics_shape: tuple[int, ...]
    form: tuple[int, str]  # head_dim and architecture: what tiles depend on
    device: torch.device

    @classmethod
    def of(cls, call: Call, query: Tensor, key: Tensor) -> "_Problem":
        rows_q, heads_q, head_dim = query.shape[-3:]
        rows_k, heads_k = key.shape[-3:-1]
        group = heads_q // heads_k
        if isinstance(call.mask, Varlen):
            samples, sample_q, sample_k = call.mask.cu_seqlens_q.shape[0] - 1, 0, 0
            max_q, max_k = min(call.mask.max_seqlen_q, rows_q), min(call.mask.max_seqlen_k, rows_k)
            statistics_shape: tuple[int, ...] = (heads_q, rows_q)
        else:
            samples, sample_q, sample_k, max_q, max_k = query.shape[0], rows_q, rows_k, rows_q, rows_k
            statistics_shape = (samples, heads_q, rows_q)
        form = (head_dim, tiling.ANY if query.dtype == torch.float32 else _architecture(query.device))
        sizes = (heads_q, group, rows_q, rows_k)
        return cls(
            call.mask, call.rope_query is not None, samples, heads_q, group, max_q, max_k, sample_q, sample_k, sizes,
            statistics_shape, form, query.device,
        )  # fmt: skip

    @property
    def sparse(self) -> bool:
        return isinstance(self.mask, BlockSparse)

    @property
    def rope_in_kernel(self) -> bool:
        return self.rope and max(self.max_q, self.max_k) <= tiling.ROPE_IN_KERNEL

    def has(self, kernel: str) -> bool:
        """Whether there is such a kernel for this form; a sparse mask has its own."""
        return not self.sparse and tiling.tile(kernel, *self.form) is not None

    def lists(self, of_queries: bool) -> Sequence[Tensor]:
        """The six lists of device/mask.py, for a walk over queries or over keys."""
        if isinstance(self.mask, BlockSparse):
            m = self.mask
            if of_queries:
                return (
                    m.full_queries_offsets, m.full_queries, m.partial_queries_offsets, m.partial_queries,
                    m.partial_queries_place, m.partial_bits,
                )  # fmt: skip
            return (
                m.full_offsets, m.full_keys, m.partial_offsets, m.partial_keys, m.partial_keys, m.partial_bits,
            )  # fmt: skip
        unread = _unread(self.device)
        if isinstance(self.mask, Varlen):
            return self.mask.cu_seqlens_q, self.mask.cu_seqlens_k, unread, unread, unread, unread
        return (unread,) * 6

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """The four numbers of device/mask.py."""
        if isinstance(self.mask, BlockSparse):
            planes_of_sample = self.mask.mask_heads if self.mask.mask_batch > 1 else 0
            return *self.mask.block_size, planes_of_sample, int(self.mask.mask_heads > 1)
        if isinstance(self.mask, BlockCausal):
            return 0, min(self.mask.block_size, _FAR), min(self.mask.query_offset, _FAR - 1), 0
        if isinstance(self.mask, Varlen):
            return 1, 1 if self.mask.causal else _FAR, 0, int(self.mask.causal)
        return 0, _FAR, 0, 0


@functools.cache
def _unread(device: torch.device) -> Tensor:
    """What is not read still has to be a pointer of the declared type."""
    return torch.zeros(4, dtype=torch.int32, device=device)


@functools.cache
def _architecture(device: torch.device) -> str:
    if device.type != "cuda":
        return tiling.HOPPER  # interpreted
    return tiling.family(torch.cuda.get_device_capability(device))


def _regular(x: Tensor) -> Tensor:
    """A copy where rows do not begin at multiples of 16 bytes, or lie further apart than a tile's offsets reach."""
    strides = [stride for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]
    aligned = x.data_ptr() % 16 == 0 and not any(stride % _OCTET for stride in strides)
    if aligned and x.stride(-1) == 1 and (x.shape[-3] == 1 or x.stride(-3) < _MAX_TOKEN_STRIDE):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """From a sample, a token, a head to the next, in octets."""
    strides = [0 if size == 1 else stride // _OCTET for size, stride in zip(x.shape, x.stride(), strict=True)]
    sample, token, head = (0, *strides[:-1]) if x.ndim == 3 else strides[:-1]
    return sample, token, head


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


def _tables(call: Call | None, unread: Tensor) -> Sequence[Tensor]:
    if call is None or call.rope_query is None or call.rope_key is None:
        return (unread,) * 4
    return call.rope_query.cos, call.rope_query.sin, call.rope_key.cos, call.rope_key.sin


def _table_rows(call: Call | None) -> tuple[int, int]:
    if call is None or call.rope_query is None or call.rope_key is None:
        return 0, 0
    return call.rope_query.rows_per_sample, call.rope_key.rows_per_sample


def _pick(
    name: str, dtype: torch.dtype, head_dim: int, architecture: str
) -> tuple[KernelConfiguration, tiling.Tile]:
    tile = tiling.tile(name, head_dim, architecture)
    assert tile is not None
    return _configuration(name, dtype, head_dim, architecture, tile), tile


@functools.cache
def _configuration(
    name: str, dtype: torch.dtype, head_dim: int, architecture: str, tile: tiling.Tile
) -> KernelConfiguration:
    kernel = _KERNELS[name.partition("_")[0]]
    half = dtype != torch.float32
    part_0, part_1, part_2 = tiling.parts(head_dim, architecture)
    values: dict[str, Any] = {
        "HEAD_DIM": head_dim,
        "PART_0": part_0,
        "PART_1": part_1,
        "PART_2": part_2,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "OWN_M": tile.own_m,
        "OWN_N": tile.own_n,
        "PRECISION": "ieee",
        "MASK": (mask.BITMASK if name.endswith("_sparse") else mask.PREFIX).value,
        "BRANCH": architecture in (tiling.HOPPER, tiling.BLACKWELL),
        "ROPE": name.endswith("_rope"),
    }
    constexprs = {argument: values[argument] for argument in kernel.arg_names if argument in values}
    # The tile that a program reads and writes once, its widest part spread over all threads.
    own = tile.own_n or (tile.block_n if name.startswith("key") else tile.block_m)
    widest = min(128, 8 * dtype.itemsize * own * part_0 // (32 * tile.num_warps))
    signature = {
        argument: _argument_type(argument, dtype)
        for argument in kernel.arg_names
        if argument not in constexprs
    }
    return KernelConfiguration(
        name=f"{name}/{_TYPES[dtype]}/D={head_dim}/{architecture}",
        kernel=kernel,
        signature=signature,
        constexprs=constexprs,
        divisible_by_16=tuple(argument for argument, kind in signature.items() if kind.startswith("*")),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        expected_load_bits=widest,
        expected_store_bits=widest,
        expected_tensor_core=half,
        architectures=tiling.ARCHITECTURES[architecture],
        sampled=_sampled(name, dtype, head_dim, architecture),
    )


def _sampled(name: str, dtype: torch.dtype, head_dim: int, architecture: str) -> bool:
    """Of every kernel one size on every architecture, of the main ones the published sizes on Hopper, where the tiles
    are tuned, and the outermost elsewhere; of the other types one size."""
    main = name in ("forward", "query_gradient", "key_gradient", "whole_gradient")
    if dtype == torch.bfloat16:
        sizes = tiling.PUBLISHED_HEAD_DIMS if architecture == tiling.HOPPER else (32, 64, 128)
        return head_dim == 64 or (main and head_dim in sizes)
    return head_dim == 64 and main and architecture in (tiling.HOPPER, tiling.ANY)


@functools.cache
def _delta_configuration(dtype: torch.dtype, head_dim: int) -> KernelConfiguration:
    element = _TYPES[dtype]
    return KernelConfiguration(
        name=f"delta/{element}/D={head_dim}",
        kernel=gradients.attention_delta_kernel,
        signature={
            **dict.fromkeys(("p_out", "p_grad_out"), f"*{element}"),
            "p_delta": "*fp32",
            **dict.fromkeys(("stride_grad_sample", "stride_grad_token", "stride_grad_head"), "i32"),
            **dict.fromkeys(("heads_q", "length_q"), "i32"),
        },
        constexprs={
            "HEAD_DIM": head_dim,
            "WIDTH": triton.next_power_of_2(head_dim),
            "BLOCK_M": _DELTA_ROWS,
        },
        divisible_by_16=("p_out", "p_grad_out", "p_delta"),
        sampled=dtype == torch.bfloat16 and head_dim in (64, 104),
        expected_store_bits=0,
    )


def _argument_type(name: str, dtype: torch.dtype) -> str:
    if name.startswith("p_mask"):
        return "*i32"
    if name.startswith(("p_cos", "p_sin")) or name in ("p_lse", "p_delta"):
        return "*fp32"
    if name.startswith("p_"):
        return f"*{_TYPES[dtype]}"
    return "fp32" if name.startswith("scale") else "i32"


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    for head_dim in tiling.HEAD_DIMS:
        for dtype in _TYPES:
            families = (tiling.ANY,) if dtype == torch.float32 else tiling.HALF_PRECISION
            for architecture, name in itertools.product(families, tiling.KERNELS):
                tile = tiling.tile(name, head_dim, architecture)
                if tile is not None:
                    yield _configuration(name, dtype, head_dim, architecture, tile)
            yield _delta_configuration(dtype, head_dim)
