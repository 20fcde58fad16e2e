"""Directions on the unit sphere from Philox4x32-10, on the GPU. philox.py says which numbers they are."""

# mypy: allow-untyped-defs
# ruff: noqa: N803
import functools
from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.configuration import KernelConfiguration
from ..runtime.launch import launch

_BLOCK_M, _BLOCK_QUADS = 16, 32  # 64 programs for 1024 directions; a quad is four elements of a column


@triton.jit
def rotation(b_r, quadrant):
    """cos and sin of pi / 2 (quadrant + r), |r| at most 1/2; trigonometry.h has the same and says why."""
    square = b_r * b_r
    tail = tl.fma(
        tl.fma(tl.fma(1.58292125072e-4, square, -4.68131327138e-3), square, 7.96925911117e-2),
        square,
        -0.645964096669,
    )
    tail = tl.fma(tail, square, -4.37113900e-8)
    sine = tl.fma(b_r, 1.57079637, b_r * tail)
    cosine = tl.fma(
        tl.fma(tl.fma(9.04228543933e-4, square, -2.08603984157e-2), square, 0.253669262315),
        square,
        -1.23370054428,
    )
    cosine = tl.fma(cosine, square, 1.0)
    odd = (quadrant & 1) != 0
    cosine_bits = tl.where(odd, sine, cosine).to(tl.int32, bitcast=True) ^ (((quadrant + 1) & 2) << 30)
    sine_bits = tl.where(odd, cosine, sine).to(tl.int32, bitcast=True) ^ ((quadrant & 2) << 30)
    return cosine_bits.to(tl.float32, bitcast=True), sine_bits.to(tl.float32, bitcast=True)


@triton.jit
def _normal_pair(first, second):
    """Two standard normal numbers of 32 random bits each, by Box and Muller."""
    n = (((first >> 9) << 1) | 1).to(tl.int32)  # odd, below 2^24
    bits = n.to(tl.float32).to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23  # of the mantissa in [sqrt(1/2), sqrt(2))
    mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    t = (mantissa - 1.0) / (mantissa + 1.0)
    square = t * t
    tail = (((square * 0.111111111 + 0.142857143) * square + 0.2) * square + 0.333333333) * square
    logarithm = (exponent - 24).to(tl.float32) * 0.693147180559945 + 2.0 * (t + t * tail)
    radius = tl.sqrt(-2.0 * logarithm)
    quarters = (second >> 8).to(tl.int32).to(tl.float32) * 2.384185791015625e-07  # 2^-22
    whole = tl.floor(quarters + 0.5)
    cosine, sine = rotation(quarters - whole, whole.to(tl.int32))
    return radius * cosine, radius * sine


@triton.jit
def _store(p_row, b_drawn, o_feature, features, m_m):
    m = (o_feature < features)[:, None] & m_m[None, :]
    tl.store(p_row, b_drawn, mask=m)
    return tl.sum(tl.where(m, b_drawn * b_drawn, 0.0), axis=0)


@triton.jit
def _scale(p_row, scale, o_feature, features, m_m):
    m = (o_feature < features)[:, None] & m_m[None, :]
    tl.store(p_row, tl.load(p_row, mask=m, other=0.0) * scale[None, :], mask=m)


@triton.jit(do_not_specialize=("features",))
def sigreg_directions_kernel(
    p_out,  # float32 [features, slices]
    p_seed,  # int64 [1]
    features,
    slices,
    BLOCK_QUADS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    seed = tl.load(p_seed)
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < slices
    squares = tl.zeros([BLOCK_M], dtype=tl.float32)
    for start in range(0, (features + 3) // 4, BLOCK_QUADS):
        o_quad = start + tl.arange(0, BLOCK_QUADS)
        counter = (o_quad[:, None].to(tl.int64) * slices + o_m[None, :]).to(
            tl.uint32
        )  # [BLOCK_QUADS, BLOCK_M]
        zero = tl.zeros([BLOCK_QUADS, BLOCK_M], dtype=tl.uint32)
        r0, r1, r2, r3 = tl.philox(seed, counter, zero, zero, zero)
        b_0, b_1 = _normal_pair(r0, r1)  # [BLOCK_QUADS, BLOCK_M]
        b_2, b_3 = _normal_pair(r2, r3)  # [BLOCK_QUADS, BLOCK_M]
        o_feature = o_quad * 4
        p_row = p_out + o_feature[:, None].to(tl.int64) * slices + o_m[None, :]
        squares += _store(p_row, b_0, o_feature, features, m_m)
        squares += _store(p_row + slices, b_1, o_feature + 1, features, m_m)
        squares += _store(p_row + 2 * slices, b_2, o_feature + 2, features, m_m)
        squares += _store(p_row + 3 * slices, b_3, o_feature + 3, features, m_m)
    scale = 1.0 / tl.sqrt(tl.where(m_m, squares, 1.0))
    for start in range(0, (features + 3) // 4, BLOCK_QUADS):
        o_feature = (start + tl.arange(0, BLOCK_QUADS)) * 4
        p_row = p_out + o_feature[:, None].to(tl.int64) * slices + o_m[None, :]
        for i in tl.static_range(4):  # each thread reads what it wrote itself
            _scale(p_row + i * slices, scale, o_feature + i, features, m_m)


@functools.cache
def _configuration(aligned: bool) -> KernelConfiguration:
    return KernelConfiguration(
        name="sigreg_directions/" + ("aligned" if aligned else "unaligned"),
        kernel=sigreg_directions_kernel,
        signature={"p_out": "*fp32", "p_seed": "*i64", "features": "i32", "slices": "i32"},
        constexprs={"BLOCK_QUADS": _BLOCK_QUADS, "BLOCK_M": _BLOCK_M},
        divisible_by_16=("p_out", "slices") if aligned else (),
        expected_load_bits=0,
        expected_store_bits=0,
    )


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that `draw` can pick; triton_sigreg.py hands them to the gate."""
    return (_configuration(aligned) for aligned in (True, False))


def draw(seed: int | Tensor, features: int, slices: int, device: torch.device) -> Tensor:
    """float32 [features, slices] with columns of length 1. seed: an int, or int64 [] on `device`."""
    if not isinstance(seed, Tensor):
        seed = torch.full((1,), seed, dtype=torch.int64, device=device)
    out = torch.empty((features, slices), dtype=torch.float32, device=device)
    aligned = slices % 16 == 0 and out.data_ptr() % 16 == 0
    launch(_configuration(aligned), (-(-slices // _BLOCK_M),), out, seed, features, slices)
    return out
