"""Residual add and LayerNorm on the GPU: a program holds whole rows in registers, and sums over rows in the backward.

Forward: one program for as many rows as make 2048 values. Backward: two programs per multiprocessor walk over all rows,
the loads of the next ones under way while the current ones are worked on, and leave a row of sums each.
"""

# mypy: allow-untyped-defs
import functools
import itertools
from collections.abc import Iterable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.configuration import KernelConfiguration
from ..runtime.launch import launch
from .branch import Branch, Gradients, Outputs

_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_HALVES = (torch.bfloat16, torch.float16)
_MIN_BLOCK, _MAX_FEATURES = 64, 4096
# 16 values per lane and operand: two 16-byte accesses of half precision, four of float32.
_VALUES_PER_WARP = 512
_FORWARD_VALUES, _BACKWARD_VALUES = 2048, 4096
_PROGRAMS_PER_MULTIPROCESSOR = 2
_INTERPRETED_PROGRAMS = 3
_MAX_ROWS = 2**31 - 2**16  # row numbers are 32 bits, offsets 64

# What the branch of a configuration has.
NONE, PLAIN, FACTORS, LAYER_SCALE = 0, 1, 2, 3
_BRANCHES = {NONE: "", PLAIN: "add_", FACTORS: "add_scaled_", LAYER_SCALE: "add_layer_scaled_"}

_FLAGS = ("rows", "tokens", "has_update_bias", "has_layer_scale", "has_drop_path")
_STRIDES = ("stride_residual", "stride_residual_token", "stride_update", "stride_update_token")
_ADDRESSING = (*_STRIDES, "features")


@triton.jit(do_not_specialize=_FLAGS)
def layer_norm_kernel(
    p_residual,  # [B, N, D]
    p_update,  # [B, N, D], read if BRANCH
    p_update_bias,  # float32 [D], and the next two, read if BRANCH is FACTORS and the flag is set
    p_layer_scale,  # float32 [D]
    p_drop_path,  # float32 [B]
    p_weight,  # float32 [D]
    p_bias,  # float32 [D]
    p_normalized,  # [B, N, D], contiguous
    p_new_residual,  # [B, N, D], contiguous, written if BRANCH
    p_mean,  # float32 [B * N]
    p_rstd,  # float32 [B * N]
    rows,
    tokens,
    stride_residual,
    stride_residual_token,
    stride_update,
    stride_update_token,
    features,
    has_update_bias,
    has_layer_scale,
    has_drop_path,
    eps,
    BRANCH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    m_row = o_row < rows
    o_sample, o_token = (o_row // tokens).to(tl.int64), (o_row % tokens).to(tl.int64)  # [ROWS]
    o_d = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    m_d = o_d < features
    m = m_row[:, None] & m_d[None, :]  # [ROWS, BLOCK_D]
    o_out = o_row.to(tl.int64)[:, None] * features + o_d[None, :]  # [ROWS, BLOCK_D]
    o_x = (o_sample * stride_residual + o_token * stride_residual_token)[:, None] + o_d[None, :]
    b_x = tl.load(p_residual + o_x, mask=m, other=0.0).to(tl.float32)  # [ROWS, BLOCK_D]
    if BRANCH > 0:
        o_u = (o_sample * stride_update + o_token * stride_update_token)[:, None] + o_d[None, :]
        b_u = tl.load(p_update + o_u, mask=m, other=0.0).to(tl.float32)  # [ROWS, BLOCK_D]
        if BRANCH > 1:
            if has_update_bias != 0:
                b_u += tl.load(p_update_bias + o_d, mask=m_d, other=0.0)[None, :]
            if has_layer_scale != 0:
                b_u *= tl.load(p_layer_scale + o_d, mask=m_d, other=0.0)[None, :]
            if has_drop_path != 0:
                b_u *= tl.load(p_drop_path + o_sample, mask=m_row, other=0.0)[:, None]
        b_new = (b_x + b_u).to(p_new_residual.dtype.element_ty)  # [ROWS, BLOCK_D]
        tl.store(p_new_residual + o_out, b_new, mask=m)
        b_x = b_new.to(tl.float32)  # what is normalised is the sum as it is stored
    b_mean = tl.sum(b_x, axis=1) / features  # [ROWS]
    b_centred = tl.where(m, b_x - b_mean[:, None], 0.0)  # [ROWS, BLOCK_D]
    b_rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, axis=1) / features + eps)  # [ROWS]
    # Loaded this late they hold no registers while the rows are waited for and summed.
    b_weight = tl.load(p_weight + o_d, mask=m_d, other=0.0)  # [BLOCK_D]
    b_bias = tl.load(p_bias + o_d, mask=m_d, other=0.0)  # [BLOCK_D]
    b_out = b_centred * b_rstd[:, None] * b_weight[None, :] + b_bias[None, :]  # [ROWS, BLOCK_D]
    tl.store(p_normalized + o_out, b_out.to(p_normalized.dtype.element_ty), mask=m)
    tl.store(p_mean + o_row, b_mean, mask=m_row)
    tl.store(p_rstd + o_row, b_rstd, mask=m_row)


@triton.jit(do_not_specialize=_FLAGS)
def layer_norm_backward_kernel(
    p_grad_normalized,  # [B, N, D], contiguous
    p_grad_new_residual,  # [B, N, D], contiguous, read if STREAM
    p_residual,  # [B, N, D], the new residual
    p_update,  # [B, N, D], read if BRANCH is LAYER_SCALE
    p_update_bias,  # float32 [D]; these three as in the forward
    p_layer_scale,  # float32 [D]
    p_drop_path,  # float32 [B]
    p_weight,  # float32 [D]
    p_mean,  # float32 [B * N]
    p_rstd,  # float32 [B * N]
    p_grad_residual,  # [B, N, D], contiguous
    p_grad_update,  # [B, N, D], contiguous, written if BRANCH
    p_partial,  # float32 [programs, SUMS, D]: for weight, bias, from FACTORS on update_bias, then layer_scale
    rows,
    tokens,
    stride_residual,
    stride_residual_token,
    stride_update,
    stride_update_token,
    features,
    has_update_bias,
    has_layer_scale,
    has_drop_path,
    STREAM: tl.constexpr,
    BRANCH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_program = tl.program_id(0)
    o_d = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    m_d = o_d < features
    b_weight = tl.load(p_weight + o_d, mask=m_d, other=0.0)  # [BLOCK_D]
    b_sum_weight = tl.zeros([ROWS, BLOCK_D], tl.float32)
    b_sum_bias = tl.zeros([ROWS, BLOCK_D], tl.float32)
    b_sum_update_bias = tl.zeros([ROWS, BLOCK_D], tl.float32)
    b_sum_scale = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for i_group in tl.range(i_program, tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=2):
        o_row = i_group * ROWS + tl.arange(0, ROWS)  # [ROWS]
        m_row = o_row < rows
        o_sample, o_token = (o_row // tokens).to(tl.int64), (o_row % tokens).to(tl.int64)  # [ROWS]
        m = m_row[:, None] & m_d[None, :]  # [ROWS, BLOCK_D]
        o_out = o_row.to(tl.int64)[:, None] * features + o_d[None, :]  # [ROWS, BLOCK_D]
        o_x = (o_sample * stride_residual + o_token * stride_residual_token)[:, None] + o_d[None, :]
        b_x = tl.load(p_residual + o_x, mask=m, other=0.0).to(tl.float32)  # [ROWS, BLOCK_D]
        b_g = tl.load(p_grad_normalized + o_out, mask=m, other=0.0).to(tl.float32)  # [ROWS, BLOCK_D]
        b_mean = tl.load(p_mean + o_row, mask=m_row, other=0.0)  # [ROWS]
        b_rstd = tl.load(p_rstd + o_row, mask=m_row, other=0.0)  # [ROWS]
        b_z = (b_x - b_mean[:, None]) * b_rstd[:, None]  # [ROWS, BLOCK_D]
        b_weighted = b_g * b_weight[None, :]  # [ROWS, BLOCK_D], zero where there is no value
        b_sum_weight += b_g * b_z
        b_sum_bias += b_g
        product = tl.sum(b_weighted * b_z, axis=1) / features  # [ROWS]
        gradient = tl.sum(b_weighted, axis=1) / features  # [ROWS]
        b_out = (b_weighted - gradient[:, None] - b_z * product[:, None]) * b_rstd[:, None]  # [ROWS, BLOCK_D]
        if STREAM:
            b_out += tl.load(p_grad_new_residual + o_out, mask=m, other=0.0).to(tl.float32)
        tl.store(p_grad_residual + o_out, b_out.to(p_grad_residual.dtype.element_ty), mask=m)
        if BRANCH > 1:
            if has_drop_path != 0:
                b_out *= tl.load(p_drop_path + o_sample, mask=m_row, other=0.0)[:, None]
            if BRANCH == 3:
                o_u = (o_sample * stride_update + o_token * stride_update_token)[:, None] + o_d[None, :]
                b_u = tl.load(p_update + o_u, mask=m, other=0.0).to(tl.float32)  # [ROWS, BLOCK_D]
                if has_update_bias != 0:
                    b_u += tl.load(p_update_bias + o_d, mask=m_d, other=0.0)[None, :]
                b_sum_scale += tl.where(m, b_out * b_u, 0.0)
            if has_layer_scale != 0:
                b_out *= tl.load(p_layer_scale + o_d, mask=m_d, other=0.0)[None, :]
            b_sum_update_bias += tl.where(m, b_out, 0.0)
        if BRANCH > 0:
            tl.store(p_grad_update + o_out, b_out.to(p_grad_update.dtype.element_ty), mask=m)
    SUMS: tl.constexpr = 2 if BRANCH < 2 else BRANCH + 1
    p_out = p_partial + i_program.to(tl.int64) * SUMS * features + o_d
    tl.store(p_out, tl.sum(b_sum_weight, axis=0), mask=m_d)
    tl.store(p_out + features, tl.sum(b_sum_bias, axis=0), mask=m_d)
    if BRANCH > 1:
        tl.store(p_out + 2 * features, tl.sum(b_sum_update_bias, axis=0), mask=m_d)
    if BRANCH == 3:
        tl.store(p_out + 3 * features, tl.sum(b_sum_scale, axis=0), mask=m_d)


@functools.cache
def _configuration(
    backward: bool,
    branch: int,
    stream: bool,
    residual: torch.dtype,
    normalized: torch.dtype,
    update: torch.dtype,
    block_d: int,
    aligned: bool,
) -> KernelConfiguration:
    types = {"residual": residual, "new_residual": residual, "normalized": normalized, "update": update}
    floats = dict.fromkeys(("p_update_bias", "p_layer_scale", "p_drop_path", "p_weight"), "*fp32")
    if backward:
        names = ("grad_normalized", "grad_new_residual", "residual", "update")
        pointers = {f"p_{name}": f"*{_TYPES[types[name.removeprefix('grad_')]]}" for name in names} | floats
        pointers |= dict.fromkeys(("p_mean", "p_rstd"), "*fp32")
        outs = ("grad_residual", "grad_update")
        pointers |= {f"p_{name}": f"*{_TYPES[types[name.removeprefix('grad_')]]}" for name in outs}
        pointers["p_partial"] = "*fp32"
    else:
        pointers = {f"p_{name}": f"*{_TYPES[types[name]]}" for name in ("residual", "update")} | floats
        pointers["p_bias"] = "*fp32"
        pointers |= {f"p_{name}": f"*{_TYPES[types[name]]}" for name in ("normalized", "new_residual")}
        pointers |= dict.fromkeys(("p_mean", "p_rstd"), "*fp32")
    integers = dict.fromkeys(("rows", "tokens", *_ADDRESSING, *_FLAGS[2:]), "i32")
    values = _BACKWARD_VALUES if backward else _FORWARD_VALUES
    rows = max(1, values // block_d)
    dtypes = "-".join(_TYPES[dtype] for dtype in (residual, update, normalized)[:: 1 if branch else 2])
    name = f"{_BRANCHES[branch]}{'backward' if backward else 'forward'}{'_stream' if stream else ''}"
    widest = 128 if aligned else 0
    return KernelConfiguration(
        name=f"{name}/{dtypes}/BLOCK_D={block_d}" + ("" if aligned else "/unaligned"),
        kernel=layer_norm_backward_kernel if backward else layer_norm_kernel,
        signature={**pointers, **integers, **({} if backward else {"eps": "fp32"})},
        constexprs={
            **({"STREAM": stream} if backward else {}),
            "BRANCH": branch,
            "ROWS": rows,
            "BLOCK_D": block_d,
        },
        divisible_by_16=(*pointers, *_ADDRESSING) if aligned else (),
        num_warps=rows * block_d // _VALUES_PER_WARP,
        sampled=_is_sampled(branch, (residual, update, normalized), block_d, aligned),
        expected_load_bits=widest,
        expected_store_bits=widest,
    )


def _is_sampled(branch: int, dtypes: tuple[torch.dtype, ...], block_d: int, aligned: bool) -> bool:
    """Every branch as training in mixed precision has it, at the block of widths 1280 to 1664; without factors also at
    that of 384, unaligned, and in the other types. The rest differs by a type or a size."""
    full, low = torch.float32, torch.bfloat16
    plain = branch in (NONE, PLAIN)
    if dtypes == (full, low, low):
        return (block_d == 2048 and (aligned or plain)) or (block_d == 512 and aligned and plain)
    return aligned and plain and block_d == 2048 and dtypes in ((full, full, full), (low, low, low))


def _dtypes() -> Iterator[tuple[torch.dtype, torch.dtype, torch.dtype]]:
    """Of residual, normalized and update, without mixtures of the two halves."""
    for dtypes in itertools.product(_TYPES, repeat=3):
        if not set(_HALVES) <= set(dtypes):
            yield dtypes[0], dtypes[1], dtypes[2]


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    block_d = _MIN_BLOCK
    while block_d <= _MAX_FEATURES:
        for dtypes, aligned in itertools.product(_dtypes(), (True, False)):
            residual, _, update = dtypes
            if update == residual:  # without a branch its dtype is the residual's
                yield _configuration(False, NONE, False, *dtypes, block_d, aligned)
                yield _configuration(True, NONE, False, *dtypes, block_d, aligned)
                yield _configuration(True, NONE, True, *dtypes, block_d, aligned)
            for branch in (PLAIN, FACTORS):
                yield _configuration(False, branch, False, *dtypes, block_d, aligned)
            for branch, stream in itertools.product((PLAIN, FACTORS, LAYER_SCALE), (False, True)):
                if branch != PLAIN or update != residual:  # else one gradient serves both: NONE
                    yield _configuration(True, branch, stream, *dtypes, block_d, aligned)
        block_d *= 2


def why_not(dtypes: dict[str, torch.dtype], features: int, rows: int) -> list[str]:
    reasons = [
        f"{name} is {dtype}; the kernel takes float32, bfloat16 and float16"
        for name, dtype in dtypes.items()
        if dtype not in _TYPES
    ]
    if set(_HALVES) <= set(dtypes.values()):
        reasons.append("float16 and bfloat16 are mixed; the kernel takes one of them beside float32")
    if features > _MAX_FEATURES:
        reasons.append(f"D is {features}; the kernel holds at most {_MAX_FEATURES} in registers")
    if rows > _MAX_ROWS:
        reasons.append(f"there are {rows} rows; the kernel counts them in 32 bits")
    return reasons


def forward(
    residual: Tensor, branch: Branch | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Outputs:
    device, shape = residual.device, residual.shape
    rows, features = shape[0] * shape[1], shape[2]
    normalized = torch.empty(shape, dtype=dtype, device=device)
    new_residual = residual if branch is None else torch.empty(shape, dtype=residual.dtype, device=device)
    mean, rstd = (torch.empty(shape[:2], dtype=torch.float32, device=device) for _ in range(2))
    if rows == 0:
        return Outputs(normalized, new_residual, mean, rstd)
    kind = NONE if branch is None else PLAIN if branch.is_plain else FACTORS
    update = residual if branch is None or branch.x is None else branch.x
    addressing, aligned = _layout(residual, update)
    configuration = _configuration(
        False, kind, False, residual.dtype, dtype, update.dtype, _block(features), aligned
    )
    vectors, flags = _factors(branch, mean)
    launch(
        configuration,
        (triton.cdiv(rows, configuration.constexprs["ROWS"]),),
        residual,
        update,
        *vectors,
        weight.float().contiguous(),
        bias.float().contiguous(),
        normalized,
        new_residual,
        mean,
        rstd,
        rows,
        shape[1],
        *addressing,
        *flags,
        eps,
    )
    return Outputs(normalized, new_residual, mean, rstd)


def backward(
    grad_normalized: Tensor,
    grad_new_residual: Tensor | None,
    new_residual: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    branch: Branch | None,
) -> Gradients:
    device, shape = new_residual.device, new_residual.shape
    rows, features = shape[0] * shape[1], shape[2]
    kind = NONE
    if branch is not None and not branch.is_plain:
        kind = FACTORS if branch.layer_scale is None else LAYER_SCALE
    elif branch is not None and not branch.shares_gradient(new_residual.dtype):
        kind = PLAIN
    grad_residual = torch.empty(shape, dtype=new_residual.dtype, device=device)
    grad_update = grad_residual
    if branch is not None and not branch.shares_gradient(new_residual.dtype):
        grad_update = torch.empty(shape, dtype=branch.dtype, device=device)
    sums = 2 if kind < FACTORS else kind + 1
    update = branch.x if branch is not None and branch.x is not None else new_residual
    addressing, aligned = _layout(new_residual, update, grad_normalized, grad_new_residual)
    update_dtype = new_residual.dtype if branch is None or kind == NONE else branch.dtype
    configuration = _configuration(
        True,
        kind,
        grad_new_residual is not None,
        new_residual.dtype,
        grad_normalized.dtype,
        update_dtype,
        _block(features),
        aligned,
    )
    programs = min(triton.cdiv(rows, configuration.constexprs["ROWS"]), _most_programs(device))
    partial = torch.empty((programs, sums, features), dtype=torch.float32, device=device)
    if rows:
        vectors, flags = _factors(branch, mean)
        launch(
            configuration,
            (programs,),
            grad_normalized,
            new_residual if grad_new_residual is None else grad_new_residual,
            new_residual,
            update,
            *vectors,
            weight.float().contiguous(),
            mean,
            rstd,
            grad_residual,
            grad_update,
            partial,
            rows,
            shape[1],
            *addressing,
            *flags,
        )
    summed = partial.sum(0)  # by PyTorch, in an order that the shape alone decides
    if kind >= FACTORS and branch is not None and branch.bias is None:
        summed = torch.cat((summed[:2], summed[3:]))
    return Gradients(grad_residual, summed, None if grad_update is grad_residual else grad_update)


def _block(features: int) -> int:
    return max(_MIN_BLOCK, triton.next_power_of_2(features))


def _layout(residual: Tensor, update: Tensor, *contiguous: Tensor | None) -> tuple[tuple[int, ...], bool]:
    """(strides and D, whether all of them and all addresses are multiples of 16)."""
    numbers = (*residual.stride()[:2], *update.stride()[:2], residual.shape[2])
    addresses = (x.data_ptr() for x in (residual, update, *contiguous) if x is not None)
    return numbers, not any(n % 16 for n in (*numbers, *addresses))


def _factors(branch: Branch | None, unread: Tensor) -> tuple[list[Tensor], list[int]]:
    """update_bias, layer_scale and drop_path, and for each whether it is there; what is not read still is a pointer."""
    given = (None, None, None) if branch is None else branch.in_float32()
    return [unread if x is None else x for x in given], [int(x is not None) for x in given]


@functools.cache
def _most_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return _PROGRAMS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
