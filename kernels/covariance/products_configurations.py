"""The forms of the kernels of device_products.py that the launcher can pick."""

# mypy: allow-untyped-defs
import functools
from collections.abc import Iterable

import torch
import triton.language as tl

from ..runtime.configuration import KernelConfiguration
from .device_products import (
    exact_diagonal_kernel,
    join_kernel,
    matrix_kernel,
    product_kernel,
)
from .device_statistics import LOW_A
from .statistics_configurations import TYPES

EXACT_BLOCK = 32  # of products in float64
REDUCE_BLOCK = 32
SPLITS_MOST = 32
_ALIGNED = ("view_offset", "features", "stride")
_OUT = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp32"}  # type of gradients; see api.py
# Operand and precision of a product. In the second product one operand is a sum of products, beyond float16's range:
# there float16 goes as TF32, which holds its 11 bits.
_FIRST = {"fp32": (tl.float32, "tf32x3"), "bf16": (tl.bfloat16, "tf32"), "fp16": (tl.float16, "tf32")}
_SECOND = {"fp32": (tl.float32, "tf32x3"), "bf16": (tl.bfloat16, "tf32"), "fp16": (tl.float32, "tf32")}
_EXACT = (tl.float64, "ieee")


def block(exact: bool) -> int:
    """Rows and columns of a program's tile of the matrix. 128 would halve the operands' traffic, and spills: centring
    takes its registers beside the sums."""
    return EXACT_BLOCK if exact else 64


def _warps(kind: str, tiled: bool, aligned: bool) -> int:
    """Four hold a tile of half precision; TF32's three products, turned operands and single loads take more."""
    return 4 if aligned and not tiled and kind != "fp32" else 8


def _stages(tiled: bool, aligned: bool) -> int:
    """Tiles of the operands that are under way at once; single loads have no registers to spare."""
    return 1 if not aligned else 2 if tiled else 3


def _sampled(kind: str, aligned: bool, plain: bool) -> bool:
    """What the gate compiles by itself: the plain form of every type, the others of float32, whose three products of a
    value take the most registers, and one unaligned."""
    return (plain and (aligned or kind == "bf16")) or (aligned and kind == "fp32")


@functools.cache
def matrix(dtype: torch.dtype, tiled: bool, barlow: bool, exact: bool, aligned: bool) -> KernelConfiguration:
    kind = TYPES[dtype]
    operand, precision = _EXACT if exact else _FIRST[kind]
    form = ("tiled" if tiled else "gram") + ("/barlow" if barlow else "") + ("/exact" if exact else "")
    return KernelConfiguration(
        name=f"matrix/{kind}/{form}{'' if aligned else '/unaligned'}",
        kernel=matrix_kernel,
        signature={
            "p_z": f"*{kind}",
            "p_columns": "*fp32",
            "p_flag": "*i32",
            "p_partial": "*fp64" if exact else "*fp32",
            "view_offset": "i64",
            **dict.fromkeys(("rows", "features", "stride", "steps", "splits"), "i32"),
        },
        constexprs={
            "LOW": LOW_A,
            "TILED": tiled,
            "PAIR": barlow and tiled,
            "SCALED": barlow,
            "EXACT": exact,
            "OPERAND": operand,
            "PRECISION": precision,
            "BLOCK": block(exact),
            "BLOCK_K": 32 if aligned else 16,
        },
        divisible_by_16=("p_z", "p_columns", *_ALIGNED) if aligned else (),
        num_warps=4 if exact else _warps(kind, tiled, aligned),
        num_stages=1 if exact else _stages(tiled, aligned),
        sampled=_sampled(kind, aligned, plain=not tiled and not barlow),
        expected_load_bits=128 if aligned and not exact else 0,
        expected_store_bits=0,
        expected_tensor_core=not exact,
    )


@functools.cache
def join(symmetric: bool, cross: bool, skip_diagonal: bool, exact: bool) -> KernelConfiguration:
    form = "cross" if cross else ("symmetric" if symmetric else "whole") + ("/skip" if skip_diagonal else "")
    pointer = "*fp64" if exact else "*fp32"
    return KernelConfiguration(
        name=f"join/{form}{'/exact' if exact else ''}",
        kernel=join_kernel,
        signature={
            **dict.fromkeys(("p_partial", "p_matrix", "p_diagonal", "p_squares"), pointer),
            "p_flag": "*i32",
            "side": "i32",
            "splits": "i32",
        },
        constexprs={
            "SYMMETRIC": symmetric,
            "CROSS": cross,
            "SKIP_DIAGONAL": skip_diagonal,
            "EXACT": exact,
            "BLOCK": REDUCE_BLOCK,
        },
        expected_load_bits=0,
        expected_store_bits=0,
    )


@functools.cache
def exact_diagonal(dtype: torch.dtype) -> KernelConfiguration:
    return KernelConfiguration(
        name=f"exact_diagonal/{TYPES[dtype]}",
        kernel=exact_diagonal_kernel,
        signature={
            "p_z": f"*{TYPES[dtype]}",
            "p_columns": "*fp32",
            "p_flag": "*i32",
            "p_diagonal": "*fp64",
            "p_squares": "*fp64",
            "view_offset": "i64",
            **dict.fromkeys(("rows", "features", "stride"), "i32"),
        },
        constexprs={"LOW": LOW_A, "BLOCK_ROWS": 16, "BLOCK_D": 128},
        expected_load_bits=0,
        expected_store_bits=0,
    )


@functools.cache
def product(
    dtype: torch.dtype, tiled: bool, barlow: bool, pair: bool, guarded: bool, exact: bool, aligned: bool
) -> KernelConfiguration:
    kind = TYPES[dtype]
    operand, precision = _EXACT if exact else _SECOND[kind]
    form = ("tiled" if tiled else "gram") + ("/barlow" if barlow else "/pair" if pair else "")
    form += "/exact" if exact else "/guarded" if guarded else ""
    return KernelConfiguration(
        name=f"product/{kind}/{form}{'' if aligned else '/unaligned'}",
        kernel=product_kernel,
        signature={
            "p_matrix": "*fp64" if exact else "*fp32",
            "p_rows": "*fp64" if exact else "*fp32",
            "p_z": f"*{kind}",
            "p_columns": "*fp32",
            "p_diagonal": "*fp64",
            "p_flag": "*i32",
            "p_out": "*fp32" if barlow else f"*{_OUT[kind]}",
            "p_dots": "*fp32",
            "view_offset": "i64",
            "out_offset": "i64",
            **dict.fromkeys(("rows", "features", "stride"), "i32"),
            **dict.fromkeys(("eps", "hinge", "distance", "of_product"), "fp32"),
        },
        constexprs={
            "LOW": LOW_A,
            "TILED": tiled,
            "BARLOW": barlow,
            "PAIR": pair,
            "GUARDED": guarded,
            "EXACT": exact,
            "OPERAND": operand,
            "PRECISION": precision,
            "BLOCK_N": EXACT_BLOCK if exact else 64,
            "BLOCK_D": EXACT_BLOCK if exact or not aligned else 64,
            "BLOCK_K": 32 if aligned else 16,
        },
        divisible_by_16=("p_matrix", "p_z", "p_columns", "p_out", "p_dots", "out_offset", *_ALIGNED)
        if aligned
        else (),
        num_warps=8 if exact else _warps(kind, tiled, aligned),
        num_stages=1 if exact else _stages(tiled, aligned),
        sampled=_sampled(kind, aligned, plain=not tiled and not barlow and not pair),
        expected_load_bits=128 if aligned and not exact else 0,
        expected_store_bits=0,
        expected_tensor_core=not exact,
    )


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    for dtype, kind in TYPES.items():
        guarded = kind == "fp32"
        for aligned in (True, False):
            for tiled in (False, True):
                for barlow in (False, True):
                    yield matrix(dtype, tiled, barlow, False, aligned)
                yield product(dtype, tiled, True, True, False, False, aligned)
                for pair in (False, True):
                    yield product(dtype, tiled, False, pair, guarded and not tiled, False, aligned)
            if guarded:
                yield matrix(dtype, False, False, True, aligned)
                for pair in (False, True):
                    yield product(dtype, False, False, pair, False, True, aligned)
        if guarded:
            yield exact_diagonal(dtype)
    yield join(True, False, False, False)
    yield join(True, False, True, False)
    yield join(False, False, True, False)
    yield join(True, True, False, False)
    yield join(True, False, False, True)
