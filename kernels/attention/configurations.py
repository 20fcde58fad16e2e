"""The attention kernels as they are compiled: what the launcher picks from, and what the gate compiles."""

# mypy: allow-untyped-defs
import functools
import itertools
from collections.abc import Iterable
from typing import Any

import torch
import triton

from ..runtime.configuration import KernelConfiguration
from . import tiling
from .device import forward, gradients, mask, whole

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
DELTA_ROWS = 32
_DELTA_WARPS = 4

_KERNELS = {
    "forward": forward.attention_forward_kernel,
    "query": gradients.attention_query_gradient_kernel,
    "key": gradients.attention_key_gradient_kernel,
    "whole": whole.attention_whole_gradient_kernel,
}


def pick(kernel: str, dtype: torch.dtype, form: tiling.Form) -> tuple[KernelConfiguration, tiling.Tile]:
    """`kernel`, a name that tiling.py chose for `form`, and the tile that its grid is counted in."""
    tile = tiling.tile(kernel, form.head_dim, form.architecture)
    assert tile is not None
    return _configuration(kernel, dtype, form.head_dim, form.architecture, tile), tile


@functools.cache
def _configuration(
    name: str, dtype: torch.dtype, head_dim: int, architecture: str, tile: tiling.Tile
) -> KernelConfiguration:
    kernel = _KERNELS[name.partition("_")[0]]
    half = dtype != torch.float32
    part_0, part_1, part_2 = tiling.parts(name, head_dim, architecture)
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
        "APART": architecture == tiling.BLACKWELL,
        "MASK": (mask.BITMASK if name.endswith("_sparse") else mask.PREFIX).value,
        "BRANCH": architecture in (tiling.HOPPER, tiling.BLACKWELL),
        "ROPE": name.endswith("_rope"),
    }
    constexprs = {argument: values[argument] for argument in kernel.arg_names if argument in values}
    # The tile that a program reads and writes once, its widest part spread over all threads.
    own = tile.own_n or (tile.block_n if name.startswith("key") else tile.block_m)
    widest = min(128, 8 * dtype.itemsize * own * max(part_0, part_1, part_2) // (32 * tile.num_warps))
    signature = {
        argument: _argument_type(argument, dtype)
        for argument in kernel.arg_names
        if argument not in constexprs
    }
    return KernelConfiguration(
        name=f"{name}/{TYPES[dtype]}/D={head_dim}/{architecture}",
        kernel=kernel,
        signature=signature,
        constexprs=constexprs,
        divisible_by_16=tuple(argument for argument, kind in signature.items() if kind.startswith("*")),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        max_registers=tile.max_registers or None,
        expected_load_bits=widest,
        expected_store_bits=widest,
        expected_tensor_core=half,
        architectures=tiling.ARCHITECTURES[architecture],
        sampled=_sampled(name, dtype, head_dim, architecture),
    )


def _sampled(name: str, dtype: torch.dtype, head_dim: int, architecture: str) -> bool:
    """Of every kernel one size on every architecture, of the main ones the published sizes on Hopper, where the tiles
    are tuned, and the outermost and the one of most parts elsewhere; of the other types one size."""
    main = name in ("forward", "query_gradient", "key_gradient", "whole_gradient")
    if dtype == torch.bfloat16:
        sizes = tiling.PUBLISHED_HEAD_DIMS if architecture == tiling.HOPPER else (32, 64, 104, 128)
        return head_dim == 64 or (main and head_dim in sizes)
    return head_dim == 64 and main and architecture in (tiling.HOPPER, tiling.ANY)


@functools.cache
def delta(dtype: torch.dtype, head_dim: int) -> KernelConfiguration:
    element = TYPES[dtype]
    width = triton.next_power_of_2(head_dim)
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
            "WIDTH": width,
            "BLOCK_M": DELTA_ROWS,
        },
        num_warps=_DELTA_WARPS,
        divisible_by_16=("p_out", "p_grad_out", "p_delta"),
        sampled=dtype == torch.bfloat16 and head_dim in (64, 104),
        expected_load_bits=min(128, 8 * dtype.itemsize * DELTA_ROWS * width // (32 * _DELTA_WARPS)),
        expected_store_bits=0,
    )


def _argument_type(name: str, dtype: torch.dtype) -> str:
    if name.startswith("p_mask"):
        return "*i32"
    if name.startswith(("p_cos", "p_sin")) or name in ("p_lse", "p_delta"):
        return "*fp32"
    if name.startswith("p_"):
        return f"*{TYPES[dtype]}"
    return "fp32" if name.startswith("scale") else "i32"


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    for head_dim, dtype in itertools.product(tiling.HEAD_DIMS, TYPES):
        families = (tiling.ANY,) if dtype == torch.float32 else tiling.HALF_PRECISION
        for architecture in families:
            for kernel in tiling.kernels(head_dim, architecture):
                tile = tiling.tile(kernel, head_dim, architecture)
                assert tile is not None
                yield _configuration(kernel, dtype, head_dim, architecture, tile)
        yield delta(dtype, head_dim)
