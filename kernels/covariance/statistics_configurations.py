"""The forms of the kernels of device_statistics.py that the launcher can pick."""

# mypy: allow-untyped-defs
import functools
from collections.abc import Iterable

import torch

from ..runtime.configuration import KernelConfiguration
from .device_statistics import (
    BLOCK_D,
    BLOCK_ROWS,
    LOW_A,
    PARTIALS,
    SUMS,
    columns_kernel,
    finish_kernel,
    loss_kernel,
    moments_kernel,
)

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_ALIGNED = ("view_offset", "features", "stride")
_OUT = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp32"}  # type of gradients; see api.py


def sampled(kind: str, aligned: bool, plain: bool) -> bool:
    """What the gate compiles by itself: the plain form of every type, the others of one type, and one unaligned."""
    return (plain and (aligned or kind == "fp32")) or (aligned and kind == "bf16")


@functools.cache
def moments(dtype: torch.dtype, pair: bool, aligned: bool) -> KernelConfiguration:
    kind = TYPES[dtype]
    return KernelConfiguration(
        name=f"moments/{kind}{'/pair' if pair else ''}{'' if aligned else '/unaligned'}",
        kernel=moments_kernel,
        signature={
            "p_z": f"*{kind}",
            "p_partial": "*fp32",
            "view_offset": "i64",
            **dict.fromkeys(("rows", "rows_per_program", "features", "stride"), "i32"),
        },
        constexprs={"PAIR": pair, "PARTIALS": PARTIALS, "BLOCK_ROWS": BLOCK_ROWS, "BLOCK_D": BLOCK_D},
        divisible_by_16=("p_z", "p_partial", *_ALIGNED) if aligned else (),
        sampled=sampled(kind, aligned, plain=not pair),
        expected_load_bits=128 if aligned else 0,
        expected_store_bits=0,  # sums: 128 floats for thousands of values read
    )


@functools.cache
def columns(pair: bool, barlow: bool, unbiased: bool) -> KernelConfiguration:
    form = ("barlow" + ("/unbiased" if unbiased else "")) if barlow else "vicreg" + ("/pair" if pair else "")
    return KernelConfiguration(
        name=f"columns/{form}",
        kernel=columns_kernel,
        signature={
            **dict.fromkeys(("p_partial", "p_columns", "p_deviation", "p_sums"), "*fp32"),
            **dict.fromkeys(("parts", "rows", "rows_per_program", "features"), "i32"),
            "eps": "fp32",
        },
        constexprs={
            "PAIR": pair,
            "BARLOW": barlow,
            "UNBIASED": unbiased,
            "PARTIALS": PARTIALS,
            "LOW": LOW_A,
            "SUMS": SUMS,
            "BLOCK_D": BLOCK_D,
        },
        num_warps=4,
        expected_load_bits=0,
        expected_store_bits=0,
    )


@functools.cache
def loss(views: int, barlow: bool, products: bool, gram: bool, exact: bool) -> KernelConfiguration:
    form = "barlow" if barlow else f"vicreg/{views}"
    suffix = ("/gram" if gram else "/tiled") if products else ""
    return KernelConfiguration(
        name=f"loss/{form}{suffix}{'/exact' if exact else ''}",
        kernel=loss_kernel,
        signature={
            "p_loss": "*fp32",
            "p_rank": "*fp32",
            "p_flag": "*i32",
            "p_sums": "*fp32",
            "p_squares": "*fp32",
            "p_exact_squares": "*fp64",
            "p_exact": "*fp64",
            "blocks": "i32",
            "tiles": "i32",
            **dict.fromkeys(
                ("invariance", "variance", "covariance", "off_diagonal", "most_cancellation"), "fp32"
            ),
        },
        constexprs={
            "VIEWS": views,
            "BARLOW": barlow,
            "PRODUCTS": products,
            "GRAM": gram,
            "EXACT": exact,
            "SUMS": SUMS,
            "BLOCK": 256,
        },
        expected_load_bits=0,
        expected_store_bits=0,
    )


@functools.cache
def finish(dtype: torch.dtype, pair: bool, barlow: bool, gram: bool, aligned: bool) -> KernelConfiguration:
    kind = TYPES[dtype]
    form = f"barlow/{'gram' if gram else 'tiled'}" if barlow else "vicreg" + ("/pair" if pair else "")
    return KernelConfiguration(
        name=f"finish/{kind}/{form}{'' if aligned else '/unaligned'}",
        kernel=finish_kernel,
        signature={
            "p_z": f"*{kind}",
            **dict.fromkeys(("p_columns", "p_product", "p_dots"), "*fp32"),
            "p_out": f"*{_OUT[kind]}",
            **dict.fromkeys(("view_offset", "product_offset", "out_offset"), "i64"),
            **dict.fromkeys(("rows", "parts", "features", "stride"), "i32"),
            **dict.fromkeys(("eps", "hinge", "distance", "of_product", "off_diagonal", "weight"), "fp32"),
        },
        constexprs={
            "PAIR": pair,
            "BARLOW": barlow,
            "GRAM": gram,
            "LOW": LOW_A,
            "BLOCK_ROWS": BLOCK_ROWS,
            "BLOCK_D": BLOCK_D,
        },
        divisible_by_16=(
            "p_z",
            "p_columns",
            "p_product",
            "p_dots",
            "p_out",
            "product_offset",
            "out_offset",
            *_ALIGNED,
        )
        if aligned
        else (),
        sampled=sampled(kind, aligned, plain=not pair and not barlow),
        expected_load_bits=128 if aligned else 0,
        expected_store_bits=128 if aligned else 0,
    )


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    for dtype in TYPES:
        for aligned in (True, False):
            for pair in (False, True):
                yield moments(dtype, pair, aligned)
                yield finish(dtype, pair, False, False, aligned)
            for gram in (False, True):
                yield finish(dtype, True, True, gram, aligned)
    for pair in (False, True):
        yield columns(pair, False, False)
    for unbiased in (False, True):
        yield columns(True, True, unbiased)
    for gram in (False, True):
        yield loss(2, True, True, gram, False)
    for views in (1, 2):
        yield loss(views, False, False, False, False)
        yield loss(views, False, True, False, False)
        yield loss(views, False, True, True, False)
        yield loss(views, False, True, True, True)
