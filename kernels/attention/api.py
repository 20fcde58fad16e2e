"""Attention under the masks and rotary positions of joint-embedding predictive architectures."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rope.api import check_positions
from ..rope.positions import Rope3D
from ..rope.tables import Tables
from ..runtime import library
from ..runtime.choice import Explanation, Operation
from ..runtime.derivative import differentiable_once
from .call import Call
from .masks import KINDS, Mask, Varlen

__all__ = ["masked_attention"]

OPERATION = Operation("attention", __package__, triton="triton_attention", native="native")
NO_MASK = "none"
Rope = Rope3D | tuple[Rope3D, Rope3D]


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = None,
    rope: Rope | None = None,
    scale: float | None = None,
    implementation: str = "auto",
) -> Tensor:
    """softmax(scale * rotate(query) rotate(key)^T + mask) value, for every mask a JEPA uses (arXiv 1706.03762,
    equation 1; the rotation is that of `Rope3D`).

    query: `[B, Nq, Hq, D]`, or packed `[total_q, Hq, D]` under `Varlen`.
    key, value: `[B, Nk, Hk, D]` or packed `[total_k, Hk, D]`. Hk divides Hq: query head h reads key head
        `h // (Hq // Hk)`.
    mask: None, every query sees every key; `Varlen`, packed sequences; `BlockCausal`, causal over steps of several
        tokens; `BlockSparse`, any boolean mask. A query that sees no key gives zeros and takes no gradient.
    rope: None, or `Rope3D` positions `[N, 3]`, `[B, N, 3]` or packed `[T, 3]` by which query and key are rotated; where
        they have different tokens, a pair, one for the query and one for the key.
    scale: of the logits; None is D ** -0.5.
    implementation: "auto", "triton", "native" or "reference".

    query, key and value have one dtype: float32, bfloat16 or float16 in the kernels, float64 in the reference; under
    autocast they are cast to its dtype. Only D has to be contiguous. Softmax and sums are in float32 (float64 for
    float64 inputs). Returns the shape and dtype of query, contiguous. Differentiable once in query, key and value.
    Forward and backward are deterministic.
    No path synchronises with a CUDA device except the reference's under `Varlen` and `BlockSparse`; so
    values of cu_seqlens are checked on the CPU alone, elsewhere by assertions on the device if `JEPA_FAST_CHECK=1`.

    Raises ValueError for shapes or values that do not fit, TypeError for dtypes, RuntimeError if a requested
    implementation cannot serve.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    query, key, value = autocast(query, key, value)
    ropes = _pair(rope)
    check(query, key, value, mask, ropes)
    form, tensors = _flatten(mask, ropes, query, key.shape[-1] ** -0.5 if scale is None else scale)
    if library.as_node(query, key, value):
        # The op has its own gradient: a traced autograd.Function could not take one tensor as query and key.
        return torch.ops.jepa_fast.attention_forward(query, key, value, tensors, *form, implementation)[0]
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return _Attention.apply(query, key, value, form, implementation, *tensors)
    return _forward(query, key, value, tensors, *form, implementation)[0]


class _Form(NamedTuple):
    """A call's mask and tables without their tensors, in the types that a compiled graph carries."""

    kind: str
    integers: tuple[int, ...]  # the mask's; with rotary positions also rows_per_sample of query and key
    rope: bool
    scale: float


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        form: _Form,
        implementation: str,
        *tensors: Tensor,
    ) -> Tensor:
        out, lse = _forward(query, key, value, tensors, *form, implementation)
        ctx.save_for_backward(query, key, value, out, lse, *tensors)
        ctx.form, ctx.implementation = form, implementation
        return out

    @staticmethod
    @differentiable_once("masked_attention")
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, *tensors = ctx.saved_tensors
        kind, integers, rope, scale = ctx.form
        gradients = _backward(
            query, key, value, out, lse, grad_out, tensors, kind, integers, rope, scale, ctx.implementation
        )
        return *gradients, None, None, *(None for _ in tensors)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tensors: Sequence[Tensor],
    kind: str,
    integers: Sequence[int],
    rope: bool,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    call = _unflatten(tensors, kind, integers, rope, scale)
    module = OPERATION.choose(implementation, query.device, call, query, key, value)
    if isinstance(call.mask, Varlen):
        call.mask.check_values(query.shape[0], key.shape[0])
    if query.numel() == 0 or key.numel() == 0:
        return torch.zeros_like(query, memory_format=torch.contiguous_format), _lse(query).fill_(-torch.inf)
    return module.forward(call, _rows(query), _rows(key), _rows(value))


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    tensors: Sequence[Tensor],
    kind: str,
    integers: Sequence[int],
    rope: bool,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    call = _unflatten(tensors, kind, integers, rope, scale)
    module = OPERATION.choose(implementation, query.device, call, query, key, value)
    if query.numel() == 0 or key.numel() == 0:
        dq, dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
        return dq, dk, dv
    return module.backward(call, _rows(query), _rows(key), _rows(value), out, lse, _rows(grad_out))


def _rows(x: Tensor) -> Tensor:
    """With the last dimension contiguous: all that the kernels ask of a layout."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _lse(query: Tensor) -> Tensor:
    """Not filled, `[B, Hq, Nq]` or `[Hq, total_q]`."""
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty((*query.shape[:-3], query.shape[-2], query.shape[-3]), dtype=dtype)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As autocast casts the arguments of `F.scaled_dot_product_attention`: all but float64."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _pair(rope: Rope | None) -> tuple[Rope3D, Rope3D] | None:
    if rope is None:
        return None
    ropes = (rope, rope) if isinstance(rope, Rope3D) else rope
    if not isinstance(ropes, tuple) or len(ropes) != 2 or not all(isinstance(x, Rope3D) for x in ropes):
        raise TypeError(f"rope: expected None, a Rope3D or a pair of them, got {type(rope).__name__}")
    return ropes


def _flatten(
    mask: Mask | None, ropes: tuple[Rope3D, Rope3D] | None, query: Tensor, scale: float
) -> tuple[_Form, list[Tensor]]:
    tensors = [] if mask is None else mask.tensors()
    integers = [] if mask is None else mask.integers()
    if ropes is not None:
        for rope in ropes:
            tables = rope.tables(query.shape[-1], query.dtype)
            tensors += [tables.cos, tables.sin]
            integers.append(tables.rows_per_sample)
    kind = NO_MASK if mask is None else mask.kind
    return _Form(kind, tuple(integers), ropes is not None, float(scale)), tensors


def _unflatten(
    tensors: Sequence[Tensor], kind: str, integers: Sequence[int], rope: bool, scale: float
) -> Call:
    rope_query = rope_key = None
    if rope:
        *tensors, cos_q, sin_q, cos_k, sin_k = tensors
        *integers, rows_q, rows_k = integers
        rope_query, rope_key = Tables(cos_q, sin_q, rows_q), Tables(cos_k, sin_k, rows_k)
    mask = None if kind == NO_MASK else KINDS[kind].rebuild(tensors, integers)
    return Call(mask, rope_query, rope_key, scale)


def check(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask | None, ropes: tuple[Rope3D, Rope3D] | None
) -> None:
    """Raise the errors of `masked_attention`, but for values that lie on a device."""
    if mask is not None and not isinstance(mask, tuple(KINDS.values())):
        accepted = "None, Varlen, BlockCausal or BlockSparse (a boolean tensor: BlockSparse.from_dense)"
        raise TypeError(f"mask: expected {accepted}, got {type(mask).__name__}")
    packed = mask is not None and mask.packed
    layout, rank = ("packed [tokens, H, D]", 3) if packed else ("[B, N, H, D]", 4)
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != rank:
            under = "" if mask is None else f" under {type(mask).__name__}"
            raise ValueError(f"{name}: expected {layout}{under}, got {list(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {x.dtype}")
        if x.dtype != query.dtype:
            raise TypeError(f"{name}: expected {query.dtype} of query, got {x.dtype}")
        if x.device != query.device:
            raise ValueError(f"{name}: expected device {query.device} of query, got {x.device}")
        if x.shape[-1] != query.shape[-1] or x.shape[-1] == 0:
            raise ValueError(f"{name}: expected head_dim {query.shape[-1] or 'above 0'}, got {x.shape[-1]}")
    if key.shape != value.shape:
        raise ValueError(f"value: expected {list(key.shape)} of key, got {list(value.shape)}")
    if not packed and key.shape[0] != query.shape[0]:
        raise ValueError(f"key: expected B = {query.shape[0]} of query, got {key.shape[0]}")
    heads_q, heads_k = query.shape[-2], key.shape[-2]
    if heads_q != heads_k and (heads_k == 0 or heads_q % heads_k):
        raise ValueError(
            f"key: expected a number of heads that divides the {heads_q} of query, got {heads_k}"
        )
    if mask is not None:
        mask.check(query, key)
    if ropes is not None:
        for rope, x, name in zip(ropes, (query, key), ("query", "key"), strict=True):
            check_positions(rope, x, name)


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = None,
    rope: Rope | None = None,
    scale: float | None = None,
) -> Explanation:
    """What `masked_attention` would choose for these arguments, and why the others are refused."""
    query, key, value = autocast(query, key, value)
    ropes = _pair(rope)
    check(query, key, value, mask, ropes)
    form, tensors = _flatten(mask, ropes, query, query.shape[-1] ** -0.5 if scale is None else scale)
    return OPERATION.explain(query.device, _unflatten(tensors, *form), query, key, value)


def example_inputs(device: torch.device) -> tuple[Any, ...]:
    """Small arguments of `masked_attention`, for `jepa-fast doctor`."""
    return tuple(torch.zeros(2, 8, 2, 32, device=device) for _ in range(3))


_FORM = "Tensor[] tensors, str kind, SymInt[] integers, bool rope, float scale, str implementation"

library.define(
    f"attention_forward(Tensor query, Tensor key, Tensor value, {_FORM}) -> (Tensor, Tensor)",
    _forward,
    lambda query, *_: (query.new_empty(query.shape), _lse(query)),
)
library.define(
    "attention_backward(Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, Tensor grad_out, "
    f"{_FORM}) -> (Tensor, Tensor, Tensor)",
    _backward,
    lambda query, key, value, *_: tuple(x.new_empty(x.shape) for x in (query, key, value)),
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, tensors, *ctx.form = inputs
    ctx.save_for_backward(query, key, value, *output, *tensors)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Any, ...]:
    query, key, value, out, lse, *tensors = ctx.saved_tensors
    gradients = torch.ops.jepa_fast.attention_backward(
        query, key, value, out, lse, grad_out, tensors, *ctx.form
    )
    # A list without integers counts as one of tensors.
    of_integers: list[None] | None = None if ctx.form[1] else []
    return *gradients, [None] * len(tensors), None, of_integers, None, None, None


torch.library.register_autograd("jepa_fast::attention_forward", _gradient, setup_context=_keep)
