"""The forms of the kernels of device.py that the launcher can pick, and their launches."""

# mypy: allow-untyped-defs
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.configuration import KernelConfiguration
from ..runtime.launch import launch
from ..token_routing.index import check_values
from .device import COPY_INTEGERS, EMBED_INTEGERS, copy_kernel, embed_kernel
from .source import Source

_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_PIXELS = _TYPES | {torch.uint8: "u8"}
PATCHES = (8, 14, 16, 32)  # pixels of a square patch's side, compiled in: places in a patch then cost shifts
TUBELETS = (1, 2)
_PUBLISHED = ((1, 8), (1, 14), (1, 16), (2, 16))
_MOST_ROWS = 2**31 - 256
_COPY_ROWS, _COPY_VALUES = 8, 128  # of one program of the copy, on 4 warps


class Tile(NamedTuple):
    """block_m, block_n: rows and outputs of a program. block_k: values of one step of the sum."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# Steps of 64 values, or 128 outputs, would load less for each product, and spill: the gathered operand takes its
# addresses beside the sums.
_LARGE = Tile(128, 64, 64, 8, 3)
_SMALL = Tile(64, 64, 64, 4, 3)  # where large tiles are too few to fill the GPU
_FLOAT32 = Tile(64, 64, 32, 8, 2)  # three TF32 products for each, which takes registers,
_UNALIGNED = Tile(64, 64, 32, 8, 2)  # as an address for every value does,
_UNALIGNED_FLOAT32 = Tile(64, 64, 16, 8, 2)  # and both together
_FEW_PROGRAMS = 128

_OPERANDS = {
    torch.float32: (tl.float32, "tf32x3"),
    torch.bfloat16: (tl.bfloat16, "tf32"),
    torch.float16: (tl.float16, "tf32"),
}
_STRIDES = ("stride_sample", "stride_channel", "stride_frame", "stride_line")


def _line(side: int) -> int:
    """Values that a line of a patch takes in the weight: a power of two, so that places are found by shifts."""
    return triton.next_power_of_2(side)


def _tile(dtype: torch.dtype, small: bool, aligned: bool) -> Tile:
    if dtype == torch.float32:
        return _FLOAT32 if aligned else _UNALIGNED_FLOAT32
    return _UNALIGNED if not aligned else _SMALL if small else _LARGE


def _is_sampled(pixels: torch.dtype, dtype: torch.dtype, patch: tuple[int, int], normalize: bool) -> bool:
    """What training code of a JEPA would ask for, or a loader that leaves its pixels in bytes: in bfloat16 every
    published size, two of them from bytes, in float32 the size whose lines are padded."""
    if patch == (1, 0):
        return dtype != torch.float16
    if (pixels, normalize) not in ((torch.uint8, True), (torch.float32, False)):
        return False
    if dtype == torch.float32:
        return patch == (1, 14)
    sizes = _PUBLISHED if pixels == torch.float32 else ((1, 14), (2, 16))
    return dtype == torch.bfloat16 and patch in sizes


@functools.cache
def _embed_configuration(
    pixels: torch.dtype,
    dtype: torch.dtype,
    out: torch.dtype,
    patch: tuple[int, int],  # tubelet and side; (1, 0) for rows
    normalize: bool,
    small: bool,
    aligned: bool,
) -> KernelConfiguration:
    tubelet, side = patch
    tile = _tile(dtype, small, aligned)
    operand, precision = _OPERANDS[dtype]
    source = (
        f"rows_{_TYPES[dtype]}" if side == 0 else f"{_PIXELS[pixels]}{'_normalized' if normalize else ''}"
    )
    form = "" if side == 0 else f"/{tubelet}x{side}x{side}"
    pointers = {
        "p_pixels": f"*{_PIXELS[pixels]}",
        "p_weight": f"*{_TYPES[dtype]}",
        "p_bias": "*fp32",
        "p_position": "*fp32",
        "p_out": f"*{_TYPES[out]}",
    }
    others = {"p_index": "*i64", "p_scale": "*fp32", "p_shift": "*fp32"}
    integers = (*EMBED_INTEGERS, "values", *_STRIDES)
    return KernelConfiguration(
        name=f"embed/{_TYPES[out]}<-{_TYPES[dtype]}<-{source}{form}{'/small' if small else ''}"
        + ("" if aligned else "/unaligned"),
        kernel=embed_kernel,
        signature={**pointers, **others, **dict.fromkeys(integers, "i32")},
        constexprs={
            "NORMALIZE": normalize,
            "TUBELET": tubelet,
            "SIDE": side,
            "PX": 1 if side == 0 else _line(side),
            "OPERAND": operand,
            "PRECISION": precision,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
        },
        # A weight for patches is made here, its lines padded; one for rows is as long as they are.
        divisible_by_16=(*pointers, "features", "values", *_STRIDES)
        if aligned
        else ("p_weight", "values")
        if side
        else ("p_weight",),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        sampled=out == torch.float32
        and (aligned or side == 14)
        and not (small and (pixels == torch.uint8 or patch in ((1, 8), (1, 16))))
        and _is_sampled(pixels, dtype, patch, normalize),
        expected_load_bits=128 if aligned else 0,
        expected_store_bits=0,
        expected_tensor_core=True,
    )


@functools.cache
def _copy_configuration(
    pixels: torch.dtype, out: torch.dtype, patch: tuple[int, int], normalize: bool, aligned: bool
) -> KernelConfiguration:
    tubelet, side = patch
    pointers = {"p_pixels": f"*{_PIXELS[pixels]}", "p_out": f"*{_TYPES[out]}"}
    others = {"p_index": "*i64", "p_scale": "*fp32", "p_shift": "*fp32"}
    wide = 128 if aligned and side == _line(side) else 0
    return KernelConfiguration(
        name=f"copy/{_TYPES[out]}<-{_PIXELS[pixels]}{'_normalized' if normalize else ''}/{tubelet}x{side}x{side}"
        + ("" if aligned else "/unaligned"),
        kernel=copy_kernel,
        signature={**pointers, **others, **dict.fromkeys((*COPY_INTEGERS, *_STRIDES, "pitch"), "i32")},
        constexprs={
            "NORMALIZE": normalize,
            "TUBELET": tubelet,
            "SIDE": side,
            "PX": _line(side),
            "ROWS": _COPY_ROWS,
            "BLOCK": _COPY_VALUES,
        },
        divisible_by_16=(*pointers, *_STRIDES, "pitch") if aligned else (),
        num_warps=4,
        sampled=aligned and _is_sampled(pixels, out, patch, normalize),
        expected_load_bits=0,  # eight bytes of uint8 are a whole line of a patch
        expected_store_bits=wide,
    )


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    sources = [(p, n) for p in _PIXELS for n in (True, False) if n or p != torch.uint8]
    patches = list(itertools.product(TUBELETS, PATCHES))
    for dtype, aligned in itertools.product(_TYPES, (True, False)):
        for patch, (pixels, normalize) in itertools.product(patches, sources):
            yield _copy_configuration(pixels, dtype, patch, normalize, aligned)
        for out in dict.fromkeys((dtype, torch.float32)):
            for small in (False, True) if dtype != torch.float32 and aligned else (False,):
                for patch, (pixels, normalize) in itertools.product(patches, sources):
                    yield _embed_configuration(pixels, dtype, out, patch, normalize, small, aligned)
                yield _embed_configuration(dtype, dtype, out, (1, 0), False, small, aligned)


def why_not(source: Source, tensors: Sequence[Tensor], dtype: torch.dtype) -> list[str]:
    dtypes = dict.fromkeys([*(tensor.dtype for tensor in tensors), dtype])
    reasons = [
        f"a tensor is {d}; the kernel takes float32, bfloat16 and float16" for d in dtypes if d not in _TYPES
    ]
    pixels, grid = source.pixels, source.grid
    if pixels.dtype not in _PIXELS:
        reasons.append(f"pixels are {pixels.dtype}; the kernel takes uint8, float32, bfloat16 and float16")
    if grid is not None and (
        grid.height != grid.width or grid.width not in PATCHES or grid.tubelet not in TUBELETS
    ):
        reasons.append(
            f"patches are {list(grid.patch_size)}; the kernel takes squares of {', '.join(map(str, PATCHES))} pixels "
            f"over {' or '.join(map(str, TUBELETS))} frames"
        )
    if len(pixels) * source.length > _MOST_ROWS:
        reasons.append(f"there are more than {_MOST_ROWS} patches, which the kernel counts in 32 bits")
    if (
        grid is not None
        and sum((n - 1) * step for n, step in zip(pixels.shape[1:], pixels.stride()[1:], strict=True))
        >= 2**31
    ):
        reasons.append("a sample spans 2**31 elements or more, within which the kernel counts in 32 bits")
    return reasons


def _aligned(tensors: Iterable[Tensor], integers: Iterable[int]) -> bool:
    return not any(tensor.data_ptr() % 16 for tensor in tensors) and not any(n % 16 for n in integers)


def patchify(source: Source, index: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The kept rows `[R, K, C * t * h * w]`; all of them, `[B, N, ...]`, without an index."""
    pixels, grid = source.pixels, source.grid
    if grid is None:
        if index is None:
            return pixels.to(dtype).contiguous()
        sample = torch.arange(len(index), device=index.device) % max(len(pixels), 1)
        return pixels[sample[:, None], index].to(dtype)
    shape = (len(pixels), grid.length) if index is None else tuple(index.shape)
    lines = pixels.shape[1] * grid.tubelet * grid.height
    values = lines * grid.width
    # The product over kept rows, in the backward, reads 16 bytes at a time only where every row begins at 16 bytes.
    pitch = values if index is None else triton.cdiv(values, 16) * 16
    out = torch.empty(*shape, pitch, dtype=dtype, device=pixels.device)
    if out.numel():
        _copy(source, index, out, lines)
    return out[..., :values]


def _copy(source: Source, index: Tensor | None, out: Tensor, lines: int) -> None:
    pixels, grid = source.pixels, source.grid
    assert grid is not None
    rows, pitch = out.shape[0] * out.shape[1], out.shape[2]
    strides = pixels.stride()[:4]
    aligned = _aligned((pixels, out), (*strides, pitch))
    normalize = source.scale is not None
    # What is not read still has to be a pointer of the declared type.
    scale = pixels.new_empty(1, dtype=torch.float32) if source.scale is None else source.scale
    shift = scale if source.shift is None else source.shift
    launch(
        _copy_configuration(pixels.dtype, out.dtype, (grid.tubelet, grid.width), normalize, aligned),
        (triton.cdiv(rows, _COPY_ROWS),),
        pixels,
        pixels.new_empty(1, dtype=torch.int64) if index is None else index,
        scale,
        shift,
        out,
        rows,
        out.shape[1],
        len(pixels),
        grid.length,
        int(index is not None),
        grid.rows,
        grid.columns,
        lines,
        *strides,
        pitch,
    )


def embed(
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    position: Tensor | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """out `[R, K, D]`; no rows are formed. weight `[D, C * t * h * w]` has the dtype of the product."""
    if index is not None:
        check_values("index", index, source.length)
    pixels, grid = source.pixels, source.grid
    features, dtype = weight.shape[0], weight.dtype
    shape = (len(pixels), source.length) if index is None else tuple(index.shape)
    out = torch.empty(*shape, features, dtype=out_dtype, device=pixels.device)
    if out.numel() == 0:
        return out, None
    strides: tuple[int, ...]
    if grid is None:
        pixels = pixels.to(dtype) if pixels.stride(2) == 1 else pixels.to(dtype).contiguous()
        patch, strides = (1, 0), (pixels.stride(0), 0, 0, pixels.stride(1))
    else:
        patch, strides = (grid.tubelet, grid.width), pixels.stride()[:4]
        padding = _line(grid.width) - grid.width
        if padding:
            weight = F.pad(weight.unflatten(1, (-1, grid.width)), (0, padding)).flatten(1)
    if bias is None:
        bias = pixels.new_zeros(features, dtype=torch.float32)
    if weight.data_ptr() % 16:
        weight = weight.clone()
    bias = bias.float().contiguous()
    table = bias if position is None else position.float().contiguous()
    scale = bias if source.scale is None else source.scale
    shift = bias if source.shift is None else source.shift
    rows = shape[0] * shape[1]
    aligned = _aligned((pixels, bias, table, out), (features, weight.shape[1], *strides))
    programs = triton.cdiv(rows, _LARGE.block_m) * triton.cdiv(features, _LARGE.block_n)
    small = aligned and dtype != torch.float32 and programs < _FEW_PROGRAMS
    configuration = _embed_configuration(
        pixels.dtype, dtype, out_dtype, patch, source.scale is not None, small, aligned
    )
    block_m, block_n = (configuration.constexprs[name] for name in ("BLOCK_M", "BLOCK_N"))
    launch(
        configuration,
        (triton.cdiv(rows, block_m), triton.cdiv(features, block_n)),
        pixels,
        weight,
        bias,
        pixels.new_empty(1, dtype=torch.int64) if index is None else index,
        table,
        scale,
        shift,
        out,
        rows,
        shape[1],
        len(pixels),
        source.length,
        features,
        int(index is not None),
        int(position is not None),
        1 if grid is None else grid.rows,
        1 if grid is None else grid.columns,
        weight.shape[1],
        *strides,
    )
    return out, None
