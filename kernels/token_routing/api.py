"""Which tokens go where: gathers, the predictor's input, and packs of ragged mask sets, each in one pass."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attention.masks import Varlen
from ..runtime import library
from ..runtime.choice import Explanation
from .assembly import Assembly, assemble
from .checks import check_assembly, check_tokens
from .gathers import gather_all
from .operation import OPERATION, promoted

__all__ = ["assemble_predictor_tokens", "gather_tokens", "pack_tokens"]


class PackedTokens(NamedTuple):
    """What `pack_tokens` returns.

    tokens: `[T, D]`, the sequences one after another: all samples of the first set, then those of the second, ...
    mask: `Varlen` over them, one sequence for each row of each index, for `masked_attention`.
    ids: int64 `[T]`, the place in x of each packed token, for rotary positions.

    `tokens.split([index.numel() for index in indices])` takes the sets apart again.
    """

    tokens: Tensor
    mask: Varlen
    ids: Tensor


def gather_tokens(
    x: Tensor,
    index: Tensor,
    *,
    position: Tensor | None = None,
    dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> Tensor:
    """The tokens of `x` that `index` keeps, with their position embeddings:

        out[e * B + b, k] = x[b, index[e * B + b, k]] + position[index[e * B + b, k]]

    as I-JEPA's encoder selects its context (arXiv 2301.08243, section 3).

    x: `[B, N, D]`; only D has to be contiguous.
    index: int64 `[E * B, K]` with values in [0, N), of E masks for each sample, mask-major. Values may repeat. Wrong
        values raise on the CPU; on CUDA their rows are NaN, and `JEPA_FAST_CHECK=1` asserts on the device.
    position: `[N, D]`, or None to add nothing.
    dtype: of the result; None is the type to which x and position promote.
    implementation: "auto", "triton", "native" or "reference".

    Returns contiguous `[E * B, K, D]`. Sums are formed in float32 and rounded once; float32, bfloat16 and float16 in
    the kernels, float64 in the reference. Differentiable once in x and position; a gradient sums the rows of a token
    in their order, so it is deterministic. Under autocast the inputs are taken as they come: nothing is cast.

    Raises ValueError for shapes or index values that do not fit, TypeError for dtypes, RuntimeError if a requested
    implementation cannot serve.
    """
    rows = gather_all(x, {"index": index}, position, dtype, implementation)
    return rows.view(*index.shape, x.shape[2])


def pack_tokens(
    x: Tensor,
    indices: Sequence[Tensor],
    *,
    position: Tensor | None = None,
    dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> PackedTokens:
    """Several mask sets of different lengths as one batch without padding, so that the two sets of V-JEPA
    (arXiv 2404.08471, section 3.2) go through an encoder in one pass instead of two.

    indices: int64 `[E_s * B, K_s]` for each set s, as in `gather_tokens`, which see for all else.

    Raises ValueError if there is no index, and what `gather_tokens` raises.
    """
    if not indices:
        raise ValueError("indices: expected at least one index, got none")
    named = {f"indices[{place}]": index for place, index in enumerate(indices)}
    tokens = gather_all(x, named, position, dtype, implementation)
    lengths = [index.shape[1] for index in indices for _ in range(index.shape[0])]
    mask = Varlen.from_lengths(lengths, device=x.device)
    return PackedTokens(tokens, mask, torch.cat([index.flatten() for index in indices]))


def assemble_predictor_tokens(
    context: Tensor,
    context_index: Tensor,
    target_index: Tensor,
    position: Tensor,
    mask_token: Tensor,
    *,
    num_context: int = 1,
    dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> Tensor:
    """What the blocks of a predictor read: the context tokens of a mask, repeated for every target mask of the same
    sample, and behind them the mask token at the places to predict, each with its position embedding
    (I-JEPA, arXiv 2301.08243, section 3):

        out[(m * E + e) * B + b, j]      = context[e * B + b, j] + position[context_index[e * B + b, j]]
        out[(m * E + e) * B + b, Nc + j] = mask_token + position[target_index[m * B + b, j]]

    context: `[E * B, Nc, D]`, embedded, of E = num_context masks for each of B samples; only D has to be contiguous.
    context_index: int64 `[E * B, Nc]` with values in [0, N).
    target_index: int64 `[M * B, Np]` with values in [0, N), of M target masks, mask-major. Wrong values raise on the
        CPU; on CUDA their rows are NaN, and `JEPA_FAST_CHECK=1` asserts on the device.
    position: `[N, D]`.
    mask_token: `[D]`, or a parameter `[1, 1, D]`.
    dtype: of the result; None is the type to which context, position and mask_token promote, so that bfloat16 context
        with a float32 table gives a float32 residual stream.
    implementation: "auto", "triton", "native" or "reference".

    Returns contiguous `[M * E * B, Nc + Np, D]`. Sums are formed in float32 and rounded once; float32, bfloat16 and
    float16 in the kernels, float64 in the reference. Differentiable once in context, mask_token and position; every
    gradient is summed in float32 in a fixed order, so it is deterministic. Under autocast the inputs are taken as they
    come: nothing is cast.

    Raises ValueError for shapes or index values that do not fit, TypeError for dtypes, RuntimeError if a requested
    implementation cannot serve.
    """
    check_assembly(context, context_index, target_index, position, mask_token, num_context)
    tensors = (context, position, mask_token)
    arguments = (
        context, context_index, target_index, position, mask_token, num_context,
        promoted(tensors) if dtype is None else dtype, implementation,
    )  # fmt: skip
    if library.as_node(context):
        return torch.ops.jepa_fast.assemble_predictor_tokens(*arguments)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return Assembly.apply(*arguments)
    return assemble(*arguments)


def explain(x: Tensor, *rest: Any, **options: Any) -> Explanation:
    """What the ops of this room would choose for these arguments, and why the others are refused.

    The choice depends on device and dtypes alone: those of all floating-point tensors, and of the result.
    """
    check_tokens("x", x)
    others = [t for t in (*rest, *options.values()) if isinstance(t, Tensor) and t.is_floating_point()]
    tensors = [x, *others]
    return OPERATION.explain(x.device, tensors, options.get("dtype") or promoted(tensors))


def example_inputs(device: torch.device) -> tuple[Any, ...]:
    """Small arguments of `gather_tokens`, for `jepa-fast doctor`."""
    return torch.zeros(2, 8, 16, device=device), torch.arange(4, device=device).expand(2, 4)
