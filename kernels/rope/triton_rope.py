"""3-D rotary positions on the GPU: one program turns all heads of several tokens, query and key, so that a row of the
tables is read once."""

# mypy: allow-untyped-defs
import functools
import itertools
from collections.abc import Iterable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.configuration import KernelConfiguration
from ..runtime.launch import launch
from .tables import Tables

MAX_HEAD_DIM = 128
_GRANULE = 8  # channels, 16 bytes of half precision: rows then begin where wide accesses can
_SAMPLED_HEAD_DIM = 64
_PUBLISHED_HEAD_DIMS = (24, 32, 64, 80, 88, 104, 128)
_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# 4 warps x 32 lanes x 8 values: one 16-byte access per lane and head for half precision, two for float32.
_NUM_WARPS = 4
_VALUES = 1024
_ALIGNMENT = 8  # of strides, in values: 16 bytes of half precision
_INTEGERS = (
    "rows_per_sample",
    "tokens",
    "all_tokens",
    "heads_query",
    "heads_key",
    "stride_query_sample",
    "stride_query_token",
    "stride_query_head",
    "stride_key_sample",
    "stride_key_token",
    "stride_key_head",
)


@triton.jit
def _rotate_heads(
    p_x,
    p_out,
    o_x,  # [TOKENS, BLOCK_D], of the first head
    o_out,
    m_x,
    b_cos_even,  # [TOKENS, BLOCK_D / 2]
    b_cos_odd,
    b_sin_even,
    b_sin_odd,
    heads,
    stride_head,
    TRANSPOSED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    for i_head in range(heads):
        b_x = tl.load(p_x + i_head * stride_head + o_x, mask=m_x, other=0.0).to(
            tl.float32
        )  # [TOKENS, BLOCK_D]
        b_even, b_odd = tl.split(tl.reshape(b_x, [TOKENS, BLOCK_D // 2, 2]))  # [TOKENS, BLOCK_D / 2]
        if TRANSPOSED:
            b_first = b_even * b_cos_even + b_odd * b_sin_odd
            b_second = b_odd * b_cos_odd - b_even * b_sin_even
        else:
            b_first = b_even * b_cos_even - b_odd * b_sin_even
            b_second = b_odd * b_cos_odd + b_even * b_sin_odd
        b_out = tl.reshape(tl.join(b_first, b_second), [TOKENS, BLOCK_D])
        tl.store(p_out + i_head * HEAD_DIM + o_out, b_out.to(p_out.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=_INTEGERS)
def rope_kernel(
    p_cos,  # float32 [rows, HEAD_DIM]
    p_sin,
    p_query,  # [B, N, heads_query, HEAD_DIM]
    p_query_out,  # the same, contiguous
    p_key,  # [B, N, heads_key, HEAD_DIM]; not read if heads_key is 0
    p_key_out,
    rows_per_sample,
    tokens,  # N
    all_tokens,  # B * N
    heads_query,
    heads_key,
    stride_query_sample,
    stride_query_token,
    stride_query_head,
    stride_key_sample,
    stride_key_token,
    stride_key_head,
    TRANSPOSED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o_token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)  # [TOKENS]
    o_d = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    m_x = (o_token < all_tokens)[:, None] & (o_d < HEAD_DIM)[None, :]  # [TOKENS, BLOCK_D]
    o_sample, o_place = o_token // tokens, o_token % tokens
    o_table = (o_sample * rows_per_sample + o_place)[:, None] * HEAD_DIM + o_d[None, :]  # [TOKENS, BLOCK_D]
    b_cos = tl.load(p_cos + o_table, mask=m_x, other=1.0)  # [TOKENS, BLOCK_D]
    b_sin = tl.load(p_sin + o_table, mask=m_x, other=0.0)  # [TOKENS, BLOCK_D]
    b_cos_even, b_cos_odd = tl.split(tl.reshape(b_cos, [TOKENS, BLOCK_D // 2, 2]))  # [TOKENS, BLOCK_D / 2]
    b_sin_even, b_sin_odd = tl.split(tl.reshape(b_sin, [TOKENS, BLOCK_D // 2, 2]))  # [TOKENS, BLOCK_D / 2]

    stride_query_sample = tl.multiple_of(stride_query_sample, ALIGNMENT)
    stride_query_token = tl.multiple_of(stride_query_token, ALIGNMENT)
    stride_query_head = tl.multiple_of(stride_query_head, ALIGNMENT)
    o_query = (o_sample * stride_query_sample + o_place * stride_query_token)[:, None] + o_d[None, :]
    o_query_out = o_token[:, None] * (heads_query * HEAD_DIM) + o_d[None, :]
    _rotate_heads(
        p_query, p_query_out, o_query, o_query_out, m_x, b_cos_even, b_cos_odd, b_sin_even, b_sin_odd,
        heads_query, stride_query_head, TRANSPOSED, HEAD_DIM, TOKENS, BLOCK_D,
    )  # fmt: skip
    stride_key_sample = tl.multiple_of(stride_key_sample, ALIGNMENT)
    stride_key_token = tl.multiple_of(stride_key_token, ALIGNMENT)
    stride_key_head = tl.multiple_of(stride_key_head, ALIGNMENT)
    o_key = (o_sample * stride_key_sample + o_place * stride_key_token)[:, None] + o_d[None, :]
    o_key_out = o_token[:, None] * (heads_key * HEAD_DIM) + o_d[None, :]
    _rotate_heads(
        p_key, p_key_out, o_key, o_key_out, m_x, b_cos_even, b_cos_odd, b_sin_even, b_sin_odd,
        heads_key, stride_key_head, TRANSPOSED, HEAD_DIM, TOKENS, BLOCK_D,
    )  # fmt: skip


@functools.cache
def _configuration(dtype: torch.dtype, head_dim: int, transposed: bool, aligned: bool) -> KernelConfiguration:
    block_d = triton.next_power_of_2(head_dim)
    tensors = dict.fromkeys(("p_query", "p_query_out", "p_key", "p_key_out"), f"*{_TYPES[dtype]}")
    pointers = {"p_cos": "*fp32", "p_sin": "*fp32", **tensors}
    return KernelConfiguration(
        name=f"rope{'_transposed' if transposed else ''}/{_TYPES[dtype]}/HEAD_DIM={head_dim}"
        + ("" if aligned else "/unaligned"),
        kernel=rope_kernel,
        signature={**pointers, **dict.fromkeys(_INTEGERS, "i32")},
        constexprs={
            "TRANSPOSED": transposed,
            "ALIGNMENT": _ALIGNMENT if aligned else 1,
            "HEAD_DIM": head_dim,
            "TOKENS": _VALUES // block_d,
            "BLOCK_D": block_d,
        },
        divisible_by_16=tuple(pointers) if aligned else ("p_cos", "p_sin", "p_query_out", "p_key_out"),
        num_warps=_NUM_WARPS,
        sampled=_is_sampled(dtype, head_dim, transposed, aligned),
    )


def _is_sampled(dtype: torch.dtype, head_dim: int, transposed: bool, aligned: bool) -> bool:
    """Every type at one size, one of them unaligned, and one type at every published size, in one direction."""
    if head_dim == _SAMPLED_HEAD_DIM:
        return aligned or dtype == torch.bfloat16
    return aligned and not transposed and dtype == torch.bfloat16 and head_dim in _PUBLISHED_HEAD_DIMS


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    head_dims = range(_GRANULE, MAX_HEAD_DIM + 1, _GRANULE)
    for arguments in itertools.product(_TYPES, head_dims, (False, True), (True, False)):
        yield _configuration(*arguments)


def why_not(tables: Tables, tensors: Sequence[Tensor]) -> list[str]:
    reasons = []
    if tensors[0].dtype not in _TYPES:
        reasons.append(f"the tensors are {tensors[0].dtype}; the kernel takes float32, bfloat16 and float16")
    head_dim = tensors[0].shape[-1]
    if head_dim % _GRANULE or not 0 < head_dim <= MAX_HEAD_DIM:
        reasons.append(
            f"head_dim is {head_dim}; the kernel takes multiples of {_GRANULE} up to {MAX_HEAD_DIM}"
        )
    return reasons


def rotate(tables: Tables, tensors: Sequence[Tensor], transposed: bool) -> list[Tensor]:
    out = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors]
    query, key = (x if x.ndim == 4 else x.unsqueeze(0) for x in (tensors[0], tensors[-1]))
    samples, tokens, heads, head_dim = query.shape
    if samples * tokens == 0:
        return out
    strides = (*query.stride()[:3], *key.stride()[:3])
    aligned = not any(x.data_ptr() % 16 for x in tensors) and not any(n % _ALIGNMENT for n in strides)
    configuration = _configuration(query.dtype, head_dim, transposed, aligned)
    launch(
        configuration,
        (triton.cdiv(samples * tokens, configuration.constexprs["TOKENS"]),),
        tables.cos,
        tables.sin,
        query,
        out[0],
        key,
        out[-1],
        tables.rows_per_sample,
        tokens,
        samples * tokens,
        heads,
        key.shape[2] if len(tensors) == 2 else 0,
        *strides,
    )
    return out
