"""Token routing on the GPU: a program owns some rows, finds where they come from once, and walks their features in
16-byte accesses."""

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
from .index import check_values

_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# 8 rows of 128 features on 4 warps: one access of 16 bytes per thread and operand in half precision, two in float32.
# Twice the rows take twice the registers, for 64-bit addresses above all, and hide less of the latency. Widths of
# vision transformers are multiples of 64, nearly all of 128.
_ROWS, _BLOCK_D, _NUM_WARPS = 8, 128, 4
_BLOCK_SEARCH = 32  # tokens, and rows that are searched for them at a time
_PART_ROWS, _MOST_PARTS = 64, 1024  # of the mask token's gradient, which is summed in two stages
_MOST_ROWS = 2**31 - _ROWS


@triton.jit(do_not_specialize=["rows", "tokens", "samples", "length"])
def gather_kernel(
    p_x,  # [B, N, D]
    p_index,  # int64 [rows]
    p_position,  # float32 [N, D], read if POSITION
    p_out,  # [rows, D]
    rows,
    tokens,
    samples,
    length,
    stride_sample,
    stride_token,
    features,
    POSITION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    o_d = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    m_row = o_row < rows
    b_token = tl.load(p_index + o_row, mask=m_row, other=-1)  # [ROWS]
    m_inside = (b_token >= 0) & (b_token < length)
    o_x = (o_row // tokens % samples).to(tl.int64) * stride_sample + b_token * stride_token  # [ROWS]
    o_out = o_row.to(tl.int64) * features  # [ROWS]
    for start in range(0, features, BLOCK_D):
        m_d = start + o_d < features  # [BLOCK_D]
        m_read = m_inside[:, None] & m_d[None, :]
        # A host check of the index would stop the stream: a row from outside shows as NaN instead.
        b_x = tl.load(
            p_x + o_x[:, None] + (start + o_d)[None, :], mask=m_read, other=float("nan")
        )  # [ROWS, BLOCK_D]
        b_out = b_x.to(tl.float32)  # [ROWS, BLOCK_D]
        if POSITION:
            o_position = b_token[:, None] * features + (start + o_d)[None, :]
            b_out += tl.load(p_position + o_position, mask=m_read, other=0.0)
        tl.store(
            p_out + o_out[:, None] + (start + o_d)[None, :],
            b_out.to(p_out.dtype.element_ty),
            mask=m_row[:, None] & m_d[None, :],
        )


@triton.jit(do_not_specialize=["tokens", "length"])
def inverse_kernel(
    p_index,  # int64 [R, K]
    p_first,  # int32 [R, N]: k of the only row of token n, -1 if there is none, -2 - k if k is the first of several
    tokens,
    length,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    b_first = tl.full([BLOCK], 2147483647, tl.int32)
    b_count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, tokens, BLOCK):
        o_k = start + tl.arange(0, BLOCK)  # [BLOCK]
        b_token = tl.load(p_index + i_row * tokens + o_k, mask=o_k < tokens, other=-1)  # [BLOCK]
        b_equal = b_token[None, :] == o_n[:, None]  # [BLOCK, BLOCK]
        b_first = tl.minimum(b_first, tl.min(tl.where(b_equal, o_k[None, :], 2147483647), axis=1))
        b_count += tl.sum(b_equal.to(tl.int32), axis=1)
    b_first = tl.where(b_count == 0, -1, tl.where(b_count == 1, b_first, -2 - b_first))
    tl.store(p_first + i_row * length + o_n, b_first, mask=o_n < length)


@triton.jit(do_not_specialize=["masks", "samples", "tokens", "length", "accumulate"])
def scatter_kernel(
    p_grad,  # [E * B, K, D]
    p_index,  # int64 [E * B, K]
    p_first,  # int32 [E * B, N] of inverse_kernel
    p_out,  # [B, N, D]
    masks,
    samples,
    tokens,
    length,
    accumulate,
    features,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_sample = tl.program_id(1)
    o_n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    o_d = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    m_n = o_n < length
    o_out = (i_sample.to(tl.int64) * length + o_n) * features  # [ROWS]
    for start in range(0, features, BLOCK_D):
        m_d = start + o_d < features  # [BLOCK_D]
        m = m_n[:, None] & m_d[None, :]
        p_tile = p_out + o_out[:, None] + (start + o_d)[None, :]  # [ROWS, BLOCK_D]
        b_sum = tl.load(p_tile, mask=m & (accumulate != 0), other=0.0).to(tl.float32)  # [ROWS, BLOCK_D]
        for mask in range(masks):
            i_row = (mask * samples + i_sample).to(tl.int64)
            b_entry = tl.load(p_first + i_row * length + o_n, mask=m_n, other=-1)  # [ROWS]
            b_k = tl.where(b_entry < -1, -2 - b_entry, b_entry)  # [ROWS]
            p_row = p_grad + i_row * tokens * features
            o_grad = b_k.to(tl.int64)[:, None] * features + (start + o_d)[None, :]  # [ROWS, BLOCK_D]
            b_sum += tl.load(p_row + o_grad, mask=(b_k >= 0)[:, None] & m_d[None, :], other=0.0).to(
                tl.float32
            )
            # Masks without repeated tokens, which all published samplers draw, never come here.
            if tl.min(b_entry, axis=0) < -1:
                for k in range(tokens):
                    token = tl.load(p_index + i_row * tokens + k)
                    m_again = (b_entry < -1) & (o_n == token) & (k > b_k)  # [ROWS]
                    o_again = (
                        tl.full([ROWS, 1], k, tl.int64) * features + (start + o_d)[None, :]
                    )  # [ROWS, BLOCK_D]
                    b_sum += tl.load(
                        p_row + o_again,
                        mask=m_again[:, None] & m_d[None, :],
                        other=0.0,
                    ).to(tl.float32)
        tl.store(p_tile, b_sum.to(p_out.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["rows", "contexts", "samples", "seen", "hidden", "length"])
def assemble_kernel(
    p_context,  # [E * B, Nc, D]
    p_context_index,  # int64 [E * B, Nc]
    p_target_index,  # int64 [M * B, Np]
    p_position,  # float32 [N, D]
    p_mask_token,  # float32 [D]
    p_out,  # [M * E * B, Nc + Np, D]
    rows,
    contexts,  # E * B
    samples,
    seen,  # Nc
    hidden,  # Np
    length,
    stride_sequence,
    stride_token,
    features,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    o_d = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    m_row = o_row < rows
    o_sequence, o_token = o_row // (seen + hidden), o_row % (seen + hidden)  # [ROWS]
    o_source = o_sequence % contexts  # [ROWS]
    m_seen = o_token < seen
    o_pair = o_sequence // contexts * samples + o_source % samples  # [ROWS]
    b_seen = tl.load(p_context_index + o_source * seen + o_token, mask=m_row & m_seen, other=0)
    b_hidden = tl.load(p_target_index + o_pair * hidden + o_token - seen, mask=m_row & ~m_seen, other=0)
    b_token = tl.where(m_seen, b_seen, b_hidden)  # [ROWS]
    m_inside = m_row & (b_token >= 0) & (b_token < length)
    o_context = o_source.to(tl.int64) * stride_sequence + o_token.to(tl.int64) * stride_token  # [ROWS]
    o_out = o_row.to(tl.int64) * features  # [ROWS]
    for start in range(0, features, BLOCK_D):
        m_d = start + o_d < features  # [BLOCK_D]
        b_position = tl.load(
            p_position + b_token[:, None] * features + (start + o_d)[None, :],
            mask=m_inside[:, None] & m_d[None, :],
            other=float("nan"),
        )  # [ROWS, BLOCK_D]
        b_context = tl.load(
            p_context + o_context[:, None] + (start + o_d)[None, :],
            mask=(m_row & m_seen)[:, None] & m_d[None, :],
            other=0.0,
        )  # [ROWS, BLOCK_D]
        b_mask = tl.load(p_mask_token + start + o_d, mask=m_d, other=0.0)[None, :]  # [1, BLOCK_D]
        b_out = b_position + tl.where(m_seen[:, None], b_context.to(tl.float32), b_mask)  # [ROWS, BLOCK_D]
        tl.store(
            p_out + o_out[:, None] + (start + o_d)[None, :],
            b_out.to(p_out.dtype.element_ty),
            mask=m_row[:, None] & m_d[None, :],
        )


@triton.jit(do_not_specialize=["contexts", "masks", "seen", "hidden", "part_rows", "programs"])
def assemble_backward_kernel(
    p_grad,  # [M * E * B, Nc + Np, D]
    p_grad_context,  # [E * B, Nc, D]
    p_parts,  # float32 [parts, D], sums over part_rows targets each
    contexts,  # E * B
    masks,  # M
    seen,  # Nc
    hidden,  # Np
    part_rows,
    programs,  # so many first programs are for the context, each of the rest is for a part
    features,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_program = tl.program_id(0)
    o_r = tl.arange(0, ROWS)  # [ROWS]
    o_d = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    total = seen + hidden
    if i_program < programs:
        o_row = i_program * ROWS + o_r  # [ROWS]
        m_row = o_row < contexts * seen
        o_grad = (o_row // seen * total + o_row % seen).to(tl.int64) * features  # [ROWS]
        step = (contexts * total).to(tl.int64) * features
        for start in range(0, features, BLOCK_D):
            m = m_row[:, None] & (start + o_d < features)[None, :]
            b_sum = tl.zeros([ROWS, BLOCK_D], tl.float32)
            for mask in range(masks):
                b_sum += tl.load(
                    p_grad + mask * step + o_grad[:, None] + (start + o_d)[None, :], mask=m, other=0.0
                ).to(tl.float32)
            o_out = o_row.to(tl.int64)[:, None] * features + (start + o_d)[None, :]  # [ROWS, BLOCK_D]
            tl.store(p_grad_context + o_out, b_sum.to(p_grad_context.dtype.element_ty), mask=m)
    else:
        i_part = i_program - programs
        stop = tl.minimum((i_part + 1) * part_rows, masks * contexts * hidden)
        for start in range(0, features, BLOCK_D):
            m_d = start + o_d < features  # [BLOCK_D]
            b_sum = tl.zeros([ROWS, BLOCK_D], tl.float32)
            for first in range(i_part * part_rows, stop, ROWS):
                o_row = first + o_r  # [ROWS]
                o_grad = (o_row // hidden * total + seen + o_row % hidden).to(tl.int64) * features  # [ROWS]
                b_sum += tl.load(
                    p_grad + o_grad[:, None] + (start + o_d)[None, :],
                    mask=(o_row < stop)[:, None] & m_d[None, :],
                    other=0.0,
                ).to(tl.float32)
            o_part = i_part.to(tl.int64) * features + start + o_d  # [BLOCK_D]
            tl.store(p_parts + o_part, tl.sum(b_sum, axis=0), mask=m_d)


_KERNELS = {
    "gather": (gather_kernel, ("p_index",), ("p_position",), ("rows", "tokens", "samples", "length")),
    "scatter": (
        scatter_kernel,
        ("p_index",),
        ("p_first",),
        ("masks", "samples", "tokens", "length", "accumulate"),
    ),
    "assemble": (
        assemble_kernel,
        ("p_context_index", "p_target_index"),
        ("p_position", "p_mask_token"),
        ("rows", "contexts", "samples", "seen", "hidden", "length"),
    ),
    "assemble_backward": (
        assemble_backward_kernel,
        (),
        ("p_parts",),
        ("contexts", "masks", "seen", "hidden", "part_rows", "programs"),
    ),
}
_FIRST_AND_OUT = {
    "gather": ("p_x", "p_out"),
    "scatter": ("p_grad", "p_out"),
    "assemble": ("p_context", "p_out"),
    "assemble_backward": ("p_grad", "p_grad_context"),
}
_STRIDES = {
    "gather": ("stride_sample", "stride_token"),
    "assemble": ("stride_sequence", "stride_token"),
}


@functools.cache
def _configuration(
    family: str, source: torch.dtype, out: torch.dtype, aligned: bool, position: bool = False
) -> KernelConfiguration:
    kernel, indices, others, integers = _KERNELS[family]
    first, last = _FIRST_AND_OUT[family]
    addressing = (*_STRIDES.get(family, ()), "features")
    pointers = {first: f"*{_TYPES[source]}", last: f"*{_TYPES[out]}"}
    pointers |= {name: "*i32" if name == "p_first" else "*fp32" for name in others}
    signature = dict.fromkeys(indices, "*i64") | pointers | dict.fromkeys((*integers, *addressing), "i32")
    constexprs = {"ROWS": _ROWS, "BLOCK_D": _BLOCK_D}
    if family == "gather":
        constexprs["POSITION"] = position
    common = source == out or torch.float16 not in (source, out)
    name = f"{family}{'_position' if position else ''}/{_TYPES[out]}<-{_TYPES[source]}"
    return KernelConfiguration(
        name=name + ("" if aligned else "/unaligned"),
        kernel=kernel,
        signature=signature,
        constexprs=constexprs,
        divisible_by_16=(*pointers, *addressing) if aligned else (),
        num_warps=_NUM_WARPS,
        sampled=common and (aligned or source == out == torch.bfloat16),
        expected_load_bits=128 if aligned else 0,
        expected_store_bits=128 if aligned else 0,
    )


_INVERSE = KernelConfiguration(
    name="inverse",
    kernel=inverse_kernel,
    signature={"p_index": "*i64", "p_first": "*i32", "tokens": "i32", "length": "i32"},
    constexprs={"BLOCK": _BLOCK_SEARCH},
    num_warps=_NUM_WARPS,
    expected_load_bits=0,
    expected_store_bits=0,
)


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    yield _INVERSE
    for source, out, aligned in itertools.product(_TYPES, _TYPES, (True, False)):
        yield _configuration("gather", source, out, aligned)
        yield _configuration("gather", source, out, aligned, position=True)
        for family in ("scatter", "assemble", "assemble_backward"):
            yield _configuration(family, source, out, aligned)


def why_not(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[str]:
    dtypes = dict.fromkeys([*(tensor.dtype for tensor in tensors), dtype])
    reasons = [
        f"a tensor is {d}; the kernel takes float32, bfloat16 and float16" for d in dtypes if d not in _TYPES
    ]
    if any(tensor.numel() and tensor.numel() // tensor.shape[-1] > _MOST_ROWS for tensor in tensors):
        reasons.append(f"a tensor has more than {_MOST_ROWS} rows, which the kernel counts in 32 bits")
    return reasons


def _aligned(tensors: Iterable[Tensor], integers: Iterable[int]) -> bool:
    return not any(tensor.data_ptr() % 16 for tensor in tensors) and not any(n % 16 for n in integers)


def gather(name: str, x: Tensor, index: Tensor, position: Tensor | None, out: Tensor) -> None:
    check_values(name, index, x.shape[1])
    rows, features = index.numel(), x.shape[2]
    if rows * features == 0:
        return
    # What is not read still has to be a pointer of the declared type.
    table = x.new_empty(1, dtype=torch.float32) if position is None else position.float().contiguous()
    addressing = (x.stride(0), x.stride(1), features)
    aligned = _aligned((x, table, out), addressing)
    launch(
        _configuration("gather", x.dtype, out.dtype, aligned, position is not None),
        (triton.cdiv(rows, _ROWS),),
        x,
        index,
        table,
        out,
        rows,
        index.shape[1],
        x.shape[0],
        x.shape[1],
        *addressing,
    )


def scatter(grad: Tensor, index: Tensor, out: Tensor, accumulate: bool) -> None:
    samples, length, features = out.shape
    if out.numel() == 0:
        return
    rows, tokens = index.shape
    first = torch.empty(rows, length, dtype=torch.int32, device=out.device)
    if rows:
        launch(_INVERSE, (triton.cdiv(length, _BLOCK_SEARCH), rows), index, first, tokens, length)
    launch(
        _configuration("scatter", grad.dtype, out.dtype, _aligned((grad, out), (features,))),
        (triton.cdiv(length, _ROWS), samples),
        grad,
        index,
        first,
        out,
        rows // samples,
        samples,
        tokens,
        length,
        int(accumulate),
        features,
    )


def assemble(
    context: Tensor,
    context_index: Tensor,
    target_index: Tensor,
    position: Tensor,
    mask_token: Tensor,
    samples: int,
    out: Tensor,
) -> None:
    check_values("context_index", context_index, len(position))
    check_values("target_index", target_index, len(position))
    contexts, seen, features = context.shape
    rows = out.shape[0] * out.shape[1]
    position, mask_token = position.float().contiguous(), mask_token.float().contiguous()
    addressing = (context.stride(0), context.stride(1), features)
    aligned = _aligned((context, position, mask_token, out), addressing)
    launch(
        _configuration("assemble", context.dtype, out.dtype, aligned),
        (triton.cdiv(rows, _ROWS),),
        context,
        context_index,
        target_index,
        position,
        mask_token,
        out,
        rows,
        contexts,
        samples,
        seen,
        target_index.shape[1],
        len(position),
        *addressing,
    )


def assemble_backward(grad: Tensor, grad_context: Tensor, grad_mask: Tensor) -> None:
    contexts, seen, features = grad_context.shape
    sequences, hidden = grad.shape[0], grad.shape[1] - seen
    targets = sequences * hidden
    part_rows = max(_PART_ROWS, triton.cdiv(triton.cdiv(targets, _MOST_PARTS), _ROWS) * _ROWS)
    parts = torch.empty(triton.cdiv(targets, part_rows), features, dtype=torch.float32, device=grad.device)
    programs = triton.cdiv(contexts * seen, _ROWS)
    aligned = _aligned((grad, grad_context, parts), (features,))
    launch(
        _configuration("assemble_backward", grad.dtype, grad_context.dtype, aligned),
        (programs + len(parts),),
        grad,
        grad_context,
        parts,
        contexts,
        sequences // contexts,
        seen,
        hidden,
        part_rows,
        programs,
        features,
    )
    torch.sum(parts, 0, out=grad_mask)
