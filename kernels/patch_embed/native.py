"""Patch embedding on the CPU: patches and positions in C++ (cpu.cpp), the product by oneDNN or BLAS."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime import native
from ..runtime.products import linear
from ..token_routing.api import gather_tokens
from ..token_routing.index import outside
from .source import Source

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(source: Source, tensors: Sequence[Tensor], dtype: torch.dtype) -> list[str]:
    dtypes = dict.fromkeys([*(tensor.dtype for tensor in tensors), dtype])
    reasons = [
        f"a tensor is {d}; the kernel takes float32, bfloat16 and float16" for d in dtypes if d not in _TYPES
    ]
    if source.pixels.dtype not in (*_TYPES, torch.uint8):
        reasons.append(
            f"pixels are {source.pixels.dtype}; the kernel takes uint8, float32, bfloat16 and float16"
        )
    return reasons


def patchify(source: Source, index: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The kept rows `[R, K, C * t * h * w]`; all of them, `[B, N, ...]`, without an index."""
    pixels, grid = source.pixels, source.grid
    if grid is None:
        if index is None:
            return pixels.to(dtype).contiguous()
        return gather_tokens(pixels, index, dtype=dtype, implementation="native")
    shape = (len(pixels), grid.length) if index is None else index.shape
    values = pixels.shape[1] * grid.tubelet * grid.height * grid.width
    out = torch.empty(*shape, values, dtype=dtype)
    if out.numel() == 0:
        return out
    bad = native.function("patchify")(
        pixels, *grid.patch_size, index, source.scale, source.shift, out, torch.get_num_threads()
    )
    if index is not None and bad >= 0:
        raise outside("index", index, bad, grid.length)
    return out


def embed(
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    position: Tensor | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """out `[R, K, D]`, and the rows that the backward needs again. weight `[D, C * t * h * w]` has the dtype of the
    product."""
    rows = patchify(source, index, weight.dtype)
    flat = rows.flatten(0, 1)
    shape = (*rows.shape[:2], weight.shape[0])
    if position is None or 0 in shape:
        product = linear(flat, weight, None if bias is None else bias.to(weight.dtype))
        return product.view(shape).to(out_dtype), rows
    table = position.float().contiguous()
    out = torch.empty(flat.shape[0], weight.shape[0], dtype=out_dtype)
    if weight.dtype == out_dtype == torch.float32:
        # A product that adds to what is there: positions and bias cost no pass of their own.
        start = None if bias is None else bias.float().contiguous()
        native.function("patch_positions")(None, start, index, table, out, torch.get_num_threads())
        out.addmm_(flat, weight.t())
    else:
        product = linear(flat, weight, None if bias is None else bias.to(weight.dtype))
        native.function("patch_positions")(product, None, index, table, out, torch.get_num_threads())
    return out.view(shape), rows
