"""SIGReg on the GPU: projections by PyTorch, then one thread per two slices that walks down the rows.

The matrix product stays with PyTorch: it is an ordinary one, follows the caller's choice of TF32, and its result,
read twice, is 1 / 50 of what the published code stores. All else is float32 without a special function: the
polynomials of `_rotation` cost as much as the hardware's sine would, which is too coarse (2^-21).
"""

# mypy: allow-untyped-defs
import functools
import itertools
import math
import struct
from collections.abc import Iterable

import torch
import torch.distributed
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.configuration import KernelConfiguration
from ..runtime.launch import launch
from . import gpu_directions, pipeline
from .gpu_directions import rotation
from .quadrature import Quadrature
from .settings import Settings

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_BLOCK_M, _NUM_WARPS = 128, 2  # two slices per thread: 64 sums in registers, and enough independent work
_ROWS = 64  # that are summed in float32 by one program
_GROUP = 5  # multiples of a phase round one centre; cpu.cpp and README.md say why
# What one launch covers: 16 is one more than three groups, and as many intervals as 17 knots have.
_FORMS = {5: (1, False), 10: (2, False), 16: (3, True)}
_MOST_MULTIPLES = max(_FORMS)
_MOST_VIEWS = 65_535  # CUDA's limit of a grid's third dimension


@triton.jit
def _rotation(b_value, high, low):
    """exp(i pi / 2 value (high + low)); not a number if value is not finite."""
    whole = tl.floor(tl.fma(b_value, high, 0.5))
    remainder = tl.fma(b_value, high, -whole)  # the product is never rounded
    remainder = tl.fma(b_value, low, remainder)
    more = tl.floor(remainder + 0.5)  # 0 but for values so large that `low` counts quarters
    quarters = tl.fma(tl.floor(whole * 0.25), -4.0, whole) + more  # exact
    # Adding 1.5 * 2^23 leaves the integer in the low bits.
    return rotation(remainder - more, (quarters + 12582912.0).to(tl.int32, bitcast=True))


@triton.jit
def _times(a, b):
    return a[0] * b[0] - a[1] * b[1], a[1] * b[0] + a[0] * b[1]


@triton.jit
def _powers(b_projection, high, low):
    """The rotations by 1, 2, 3 and 5 times the phase."""
    one = _rotation(b_projection, high, low)
    # By the sine, whose rounding error is smaller than the cosine's in small phases (cpu.cpp).
    twice = one[1] + one[1]
    two = (tl.fma(-twice, one[1], 1.0), twice * one[0])
    three = (one[0] * tl.fma(two[0], 2.0, -1.0), one[1] * tl.fma(two[0], 2.0, 1.0))
    return one, two, three, _times(two, three)


@triton.jit
def _skip(centre, two, tile):
    """centre, turned on by 16 phases for each tile."""
    four = _times(two, two)
    eight = _times(four, four)
    sixteen = _times(eight, eight)
    for _ in range(tile):
        centre = _times(centre, sixteen)
    return centre


@triton.jit
def _accumulate(sums, centre, one, two):
    return (
        sums[0] + centre[0],
        sums[1] + centre[1],
        tl.fma(centre[0], one[0], sums[2]),
        tl.fma(centre[1], one[1], sums[3]),
        tl.fma(centre[1], one[0], sums[4]),
        tl.fma(centre[0], one[1], sums[5]),
        tl.fma(centre[0], two[0], sums[6]),
        tl.fma(centre[1], two[1], sums[7]),
        tl.fma(centre[1], two[0], sums[8]),
        tl.fma(centre[0], two[1], sums[9]),
    )


@triton.jit
def _put(p_sums, part_size, slices, multiple, multiples, real, imaginary, m_m):
    m_put = m_m & (multiple <= multiples)
    place = p_sums + (multiple - 1) * slices
    tl.store(place, real, mask=m_put)
    tl.store(place + part_size, imaginary, mask=m_put)


@triton.jit
def _put_group(p_sums, part_size, slices, centre, multiples, sums, m_m):
    _put(p_sums, part_size, slices, centre, multiples, sums[0], sums[1], m_m)
    _put(p_sums, part_size, slices, centre + 1, multiples, sums[2] - sums[3], sums[4] + sums[5], m_m)
    _put(p_sums, part_size, slices, centre - 1, multiples, sums[2] + sums[3], sums[4] - sums[5], m_m)
    _put(p_sums, part_size, slices, centre + 2, multiples, sums[6] - sums[7], sums[8] + sums[9], m_m)
    _put(p_sums, part_size, slices, centre - 2, multiples, sums[6] + sums[7], sums[8] - sums[9], m_m)


@triton.jit(do_not_specialize=("views", "rows", "multiples", "tile"))
def sigreg_sums_kernel(
    p_projections,  # float32 [views, N, M]
    p_sums,  # float32 [chunks, 2, views, J, M]
    views,
    rows,
    slices,
    multiples,  # J
    tile,
    quarters_high,
    quarters_low,
    GROUPS: tl.constexpr,
    TAIL: tl.constexpr,
    TILED: tl.constexpr,  # multiples from 16 * tile on
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    i_chunk, i_view = tl.program_id(0), tl.program_id(2)
    o_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < slices
    first = i_chunk * ROWS
    count = tl.minimum(ROWS, rows - first)
    p_row = p_projections + (i_view.to(tl.int64) * rows + first) * slices + o_m
    zero = tl.zeros([BLOCK_M], dtype=tl.float32)
    none = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    group_0, group_1, group_2, tail = none, none, none, (zero, zero)
    b_next = tl.load(p_row, mask=m_m, other=0.0)  # [BLOCK_M]
    for row in range(count):
        b_projection = b_next
        p_row += slices
        b_next = tl.load(p_row, mask=m_m & (row + 1 < count), other=0.0)  # [BLOCK_M]
        one, two, three, five = _powers(b_projection, quarters_high, quarters_low)
        centre = three
        if TILED:
            centre = _skip(centre, two, tile)
        group_0 = _accumulate(group_0, centre, one, two)
        if GROUPS > 1:
            centre = _times(centre, five)
            group_1 = _accumulate(group_1, centre, one, two)
        if GROUPS > 2:
            centre = _times(centre, five)
            group_2 = _accumulate(group_2, centre, one, two)
        if TAIL:
            last = _times(centre, three)
            tail = (tail[0] + last[0], tail[1] + last[1])
    part_size = views.to(tl.int64) * multiples * slices
    p_out = p_sums + i_chunk.to(tl.int64) * 2 * part_size + i_view.to(tl.int64) * multiples * slices + o_m
    base = tile * 16
    _put_group(p_out, part_size, slices, base + 3, multiples, group_0, m_m)
    if GROUPS > 1:
        _put_group(p_out, part_size, slices, base + 8, multiples, group_1, m_m)
    if GROUPS > 2:
        _put_group(p_out, part_size, slices, base + 13, multiples, group_2, m_m)
    if TAIL:
        _put(p_out, part_size, slices, base + 16, multiples, tail[0], tail[1], m_m)


@triton.jit
def _take(p_differences, part_size, slices, multiple, multiples, m_m):
    m_take = m_m & (multiple <= multiples)
    place = p_differences + (multiple - 1) * slices
    return tl.load(place, mask=m_take, other=0.0), tl.load(place + part_size, mask=m_take, other=0.0)


@triton.jit
def _take_group(p_differences, part_size, slices, centre, multiples, m_m):
    """The factors of centre and (1, 2) in the sum of imaginary cos - real sin over the group."""
    real, imaginary = _take(p_differences, part_size, slices, centre, multiples, m_m)
    real_up1, up1 = _take(p_differences, part_size, slices, centre + 1, multiples, m_m)
    real_down1, down1 = _take(p_differences, part_size, slices, centre - 1, multiples, m_m)
    real_up2, up2 = _take(p_differences, part_size, slices, centre + 2, multiples, m_m)
    real_down2, down2 = _take(p_differences, part_size, slices, centre - 2, multiples, m_m)
    return (
        imaginary,
        -real,
        up1 + down1,
        down1 - up1,
        -real_up1 - real_down1,
        real_down1 - real_up1,
        up2 + down2,
        down2 - up2,
        -real_up2 - real_down2,
        real_down2 - real_up2,
    )


@triton.jit
def _slope(b_slope, factors, centre, one, two):
    by_cosine = tl.fma(factors[5], one[1], tl.fma(factors[2], one[0], factors[0]))
    by_cosine = tl.fma(factors[9], two[1], tl.fma(factors[6], two[0], by_cosine))
    by_sine = tl.fma(factors[4], one[0], tl.fma(factors[3], one[1], factors[1]))
    by_sine = tl.fma(factors[8], two[0], tl.fma(factors[7], two[1], by_sine))
    return tl.fma(centre[1], by_sine, tl.fma(centre[0], by_cosine, b_slope))


@triton.jit(do_not_specialize=("views", "rows", "multiples", "tile"))
def sigreg_slopes_kernel(
    p_projections,  # float32 [views, N, M]
    p_differences,  # float32 [2, views, J, M]
    p_slopes,  # float32 [views, N, M]; may be the projections themselves unless TILED
    views,
    rows,
    slices,
    multiples,  # J
    tile,
    quarters_high,
    quarters_low,
    GROUPS: tl.constexpr,
    TAIL: tl.constexpr,
    TILED: tl.constexpr,  # multiples from 16 * tile on; from the second tile on slopes are added
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    i_chunk, i_view = tl.program_id(0), tl.program_id(2)
    o_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < slices
    part_size = views.to(tl.int64) * multiples * slices
    p_in = p_differences + i_view.to(tl.int64) * multiples * slices + o_m
    base = tile * 16
    factors_0 = _take_group(p_in, part_size, slices, base + 3, multiples, m_m)
    if GROUPS > 1:
        factors_1 = _take_group(p_in, part_size, slices, base + 8, multiples, m_m)
    if GROUPS > 2:
        factors_2 = _take_group(p_in, part_size, slices, base + 13, multiples, m_m)
    if TAIL:
        tail_real, tail_imaginary = _take(p_in, part_size, slices, base + 16, multiples, m_m)
    first = i_chunk * ROWS
    count = tl.minimum(ROWS, rows - first)
    offset = (i_view.to(tl.int64) * rows + first) * slices
    p_row = p_projections + offset + o_m
    p_out = p_slopes + offset + o_m
    b_next = tl.load(p_row, mask=m_m, other=0.0)  # [BLOCK_M]
    for row in range(count):
        b_projection = b_next
        p_row += slices
        b_next = tl.load(p_row, mask=m_m & (row + 1 < count), other=0.0)  # [BLOCK_M]
        one, two, three, five = _powers(b_projection, quarters_high, quarters_low)
        centre = three
        b_slope = tl.zeros([BLOCK_M], dtype=tl.float32)
        if TILED:
            centre = _skip(centre, two, tile)
            b_slope = tl.load(p_out, mask=m_m & (tile > 0), other=0.0)  # [BLOCK_M]
        b_slope = _slope(b_slope, factors_0, centre, one, two)
        if GROUPS > 1:
            centre = _times(centre, five)
            b_slope = _slope(b_slope, factors_1, centre, one, two)
        if GROUPS > 2:
            centre = _times(centre, five)
            b_slope = _slope(b_slope, factors_2, centre, one, two)
        if TAIL:
            last = _times(centre, three)
            b_slope = tl.fma(tail_imaginary, last[0], tl.fma(-tail_real, last[1], b_slope))
        tl.store(p_out, b_slope, mask=m_m)
        p_out += slices


@functools.cache
def _configuration(slopes: bool, multiples: int, tiled: bool, aligned: bool) -> KernelConfiguration:
    groups, tail = _FORMS[multiples]
    pointers = ("p_projections", "p_differences", "p_slopes") if slopes else ("p_projections", "p_sums")
    integers = ("views", "rows", "slices", "multiples", "tile")
    width = 32 * _BLOCK_M // (32 * _NUM_WARPS) if aligned else 0
    name = f"sigreg_{'slopes' if slopes else 'sums'}/J={multiples}{'/tiled' if tiled else ''}"
    return KernelConfiguration(
        name=name + ("" if aligned else "/unaligned"),
        kernel=sigreg_slopes_kernel if slopes else sigreg_sums_kernel,
        signature={
            **dict.fromkeys(pointers, "*fp32"),
            **dict.fromkeys(integers, "i32"),
            "quarters_high": "fp32",
            "quarters_low": "fp32",
        },
        constexprs={"GROUPS": groups, "TAIL": tail, "TILED": tiled, "ROWS": _ROWS, "BLOCK_M": _BLOCK_M},
        divisible_by_16=(*pointers, "slices") if aligned else (),
        num_warps=_NUM_WARPS,
        sampled=aligned or multiples == _MOST_MULTIPLES,
        expected_load_bits=width,
        expected_store_bits=width,
    )


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    yield from gpu_directions.configurations()
    for slopes, multiples, aligned in itertools.product((False, True), _FORMS, (True, False)):
        yield _configuration(slopes, multiples, False, aligned)
    for slopes, aligned in itertools.product((False, True), (True, False)):
        yield _configuration(slopes, _MOST_MULTIPLES, True, aligned)


def why_not(x: Tensor) -> list[str]:
    reasons = []
    if x.dtype not in _TYPES:
        reasons.append(f"x is {x.dtype}; the kernel takes float32, bfloat16 and float16")
    if math.prod(x.shape[:-2]) > _MOST_VIEWS:
        reasons.append(f"x has {math.prod(x.shape[:-2])} views; a grid holds at most {_MOST_VIEWS}")
    return reasons


def loss_and_gradient(
    x: Tensor,
    directions: Tensor | None,
    seed: int | Tensor,
    settings: Settings,
    group: torch.distributed.ProcessGroup | None,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    return pipeline.loss_and_gradient(_Kernels(), x, directions, seed, settings, group, wants_gradient)


class _Kernels(pipeline.Kernels):
    def directions(self, seed: int | Tensor, features: int, slices: int, like: Tensor) -> Tensor:
        return gpu_directions.draw(seed, features, slices, like.device)

    def project(self, x: Tensor, directions: Tensor) -> Tensor:
        if _on_half_tensor_cores(x.dtype, x.device):
            return torch.mm(x, directions.to(x.dtype), out_dtype=torch.float32)
        return super().project(x, directions)

    def back(self, slopes: Tensor, directions: Tensor, gradient: Tensor, dtype: torch.dtype) -> None:
        if _on_half_tensor_cores(dtype, slopes.device):
            gradient += torch.mm(slopes.to(dtype), directions.to(dtype).t(), out_dtype=torch.float32)
        else:
            super().back(slopes, directions, gradient, dtype)

    def sums(self, projections: Tensor, rule: Quadrature) -> Tensor:
        views, rows, slices = projections.shape
        chunks = -(-rows // _ROWS)
        sums = torch.empty(
            (chunks, 2, views, rule.multiples, slices), dtype=torch.float32, device=projections.device
        )
        _launch(False, rule, projections, sums)
        return sums

    def slopes(self, projections: Tensor, differences: Tensor, rule: Quadrature) -> Tensor:
        tiled = rule.multiples > _MOST_MULTIPLES  # then projections are read again
        slopes = torch.empty_like(projections) if tiled else projections
        _launch(True, rule, projections, differences, slopes)
        return slopes


def _launch(slopes: bool, rule: Quadrature, projections: Tensor, *others: Tensor) -> None:
    views, rows, slices = projections.shape
    covered = next((form for form in _FORMS if rule.multiples <= form), _MOST_MULTIPLES)
    tiles = -(-rule.multiples // covered)
    aligned = not any(n % 16 for n in (slices, *(tensor.data_ptr() for tensor in (projections, *others))))
    quarters = 4.0 * rule.turns
    (high,) = struct.unpack("f", struct.pack("f", quarters))  # rounded to float32
    for tile in range(tiles if rows else 0):
        launch(
            _configuration(slopes, covered, tiles > 1, aligned),
            (-(-rows // _ROWS), -(-slices // _BLOCK_M), views),
            projections,
            *others,
            views,
            rows,
            slices,
            rule.multiples,
            tile,
            high,
            quarters - high,
        )


def _on_half_tensor_cores(dtype: torch.dtype, device: torch.device) -> bool:
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
