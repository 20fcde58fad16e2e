"""3-D rotary positions for callers that keep their own attention."""

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..runtime import library
from ..runtime.choice import Explanation, Operation
from .positions import Rope3D, cosines_and_sines
from .tables import Tables

__all__ = ["rope_3d"]

OPERATION = Operation("rope", __package__, triton="triton_rope", native="native")


@overload
def rope_3d(query: Tensor, rope: Rope3D, *, implementation: str = "auto") -> Tensor: ...


@overload
def rope_3d(
    query: Tensor, rope: Rope3D, key: Tensor, *, implementation: str = "auto"
) -> tuple[Tensor, Tensor]: ...


def rope_3d(
    query: Tensor, rope: Rope3D, key: Tensor | None = None, *, implementation: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """`query`, and `key` if given, with the rotary positions `rope` (see `Rope3D` for the formula) applied.

    query: `[B, N, H, D]` or packed `[T, H, D]`, D even; float32, bfloat16 or float16 in the kernels, float64 in the
        reference. Only D has to be contiguous.
    key: another tensor of the same tokens and dtype; its number of heads may differ. Both are rotated in one pass, in
        which a row of the table is read once.
    rope: positions `[N, 3]` or `[B, N, 3]`, or `[T, 3]` for packed tensors.
    implementation: "auto", "triton", "native" or "reference".

    Returns contiguous tensors of the shapes and dtype of the inputs, formed in float32 and rounded once. Differentiable
    in query and key, any number of times; deterministic. Under autocast nothing is cast: the inputs are taken as they
    come.

    Raises ValueError for shapes that do not fit, TypeError for dtypes, RuntimeError if a requested implementation
    cannot serve.
    """
    tensors = [query] if key is None else [query, key]
    check(rope, tensors)
    tables = rope.tables(query.shape[-1], query.dtype)
    rotated: Sequence[Tensor]
    if library.as_node(*tensors):
        # The op has its own gradient: a traced autograd.Function could not take one tensor as query and key.
        rotated = torch.ops.jepa_fast.rope_3d(*tables, tensors, False, implementation)
    elif torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        rotated = _Rotation.apply(*tables, False, implementation, *tensors)
    else:
        rotated = _rotate(*tables, tensors, False, implementation)
    return rotated[0] if key is None else (rotated[0], rotated[1])


class _Rotation(torch.autograd.Function):
    """Linear, so its gradient is itself, transposed."""

    @staticmethod
    def forward(
        ctx: Any,
        cos: Tensor,
        sin: Tensor,
        rows_per_sample: int,
        transposed: bool,
        implementation: str,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.form = (rows_per_sample, transposed, implementation)
        return tuple(_rotate(cos, sin, rows_per_sample, tensors, transposed, implementation))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows_per_sample, transposed, implementation = ctx.form
        back = _Rotation.apply(
            *ctx.saved_tensors, rows_per_sample, not transposed, implementation, *gradients
        )
        return None, None, None, None, None, *back


def _rotate(
    cos: Tensor,
    sin: Tensor,
    rows_per_sample: int,
    tensors: Sequence[Tensor],
    transposed: bool,
    implementation: str,
) -> list[Tensor]:
    tables = Tables(cos, sin, rows_per_sample)
    module = OPERATION.choose(implementation, tensors[0].device, tables, tensors)
    dense = [x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in tensors]
    return module.rotate(tables, dense, transposed)


def check(rope: Rope3D, tensors: Sequence[Tensor], names: Sequence[str] = ("query", "key")) -> None:
    """Raise the errors of `rope_3d`."""
    if not isinstance(rope, Rope3D):
        raise TypeError(f"rope: expected a Rope3D, got {type(rope).__name__}")
    query = tensors[0]
    for name, x in zip(names, tensors, strict=False):
        if x.ndim not in (3, 4):
            raise ValueError(f"{name}: expected [B, N, H, D] or packed [T, H, D], got {list(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {x.dtype}")
        if x.dtype != query.dtype:
            raise TypeError(f"{name}: expected {query.dtype} of {names[0]}, got {x.dtype}")
        if x.device != query.device:
            raise ValueError(f"{name}: expected device {query.device} of {names[0]}, got {x.device}")
        if x.shape[:-2] != query.shape[:-2] or x.shape[-1] != query.shape[-1]:
            raise ValueError(
                f"{name}: expected the tokens and head_dim of {names[0]} {list(query.shape)}, got {list(x.shape)}"
            )
    check_positions(rope, query, names[0])


def check_positions(rope: Rope3D, x: Tensor, name: str) -> None:
    """Raise if `rope` does not fit the tokens of `x`."""
    if x.shape[-1] % 2:
        raise ValueError(f"{name}: expected an even head_dim, got {x.shape[-1]}")
    accepted = [x.shape[:1]] if x.ndim == 3 else [x.shape[1:2], x.shape[:2]]
    if rope.positions.shape[:-1] not in accepted:
        shapes = " or ".join(str([*tokens, 3]) for tokens in accepted)
        raise ValueError(
            f"positions: expected {shapes} for {name} {list(x.shape)}, got {list(rope.positions.shape)}"
        )
    if rope.positions.device != x.device:
        raise ValueError(f"positions: expected device {x.device} of {name}, got {rope.positions.device}")


def explain(query: Tensor, rope: Rope3D, key: Tensor | None = None) -> Explanation:
    """What `rope_3d` would choose for these arguments, and why the others are refused."""
    tensors = [query] if key is None else [query, key]
    check(rope, tensors)
    return OPERATION.explain(query.device, rope.tables(query.shape[-1], query.dtype), tensors)


def example_inputs(device: torch.device) -> tuple[Any, ...]:
    """Small arguments of `rope_3d`, for `jepa-fast doctor`."""
    positions = torch.arange(8, device=device)[:, None].expand(8, 3)
    return torch.zeros(2, 8, 2, 32, device=device), Rope3D(positions)


library.define(
    "rope_3d_tables(Tensor positions, SymInt head_dim, str pairing, float base, str table, ScalarType rounding)"
    " -> (Tensor, Tensor)",
    cosines_and_sines,
    lambda positions, head_dim, _pairing, _base, _table, rounding: tuple(
        positions.new_empty(
            (positions[..., 0].numel(), head_dim),
            dtype=torch.float64 if rounding == torch.float64 else torch.float32,
        )
        for _ in range(2)
    ),
)
library.define(
    "rope_3d(Tensor cos, Tensor sin, SymInt rows_per_sample, Tensor[] tensors, bool transposed, str implementation)"
    " -> Tensor[]",
    _rotate,
    lambda cos, sin, rows_per_sample, tensors, *_: [x.new_empty(x.shape) for x in tensors],
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    cos, sin, ctx.rows_per_sample, _, ctx.transposed, ctx.implementation = inputs
    ctx.save_for_backward(cos, sin)


def _gradient(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    back = torch.ops.jepa_fast.rope_3d(
        *ctx.saved_tensors, ctx.rows_per_sample, gradients, not ctx.transposed, ctx.implementation
    )
    return None, None, None, back, None, None


torch.library.register_autograd("jepa_fast::rope_3d", _gradient, setup_context=_keep)
