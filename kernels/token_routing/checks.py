"""What is true of the arguments of every implementation."""

from torch import Tensor

from .index import check_form


def check_tokens(name: str, x: Tensor) -> None:
    if x.ndim != 3:
        raise ValueError(f"{name}: expected three dimensions [batch, tokens, D], got {list(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {x.dtype}")


def check_like(name: str, tensor: Tensor, shape: list[int | str], x: Tensor) -> None:
    """Raise unless `tensor` is floating-point on the device of x, of `shape`, in which a name stands for any size."""
    fits = tensor.ndim == len(shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: expected [{', '.join(map(str, shape))}], got {list(tensor.shape)}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {tensor.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected device {x.device}, got {tensor.device}")


def check_gather(x: Tensor, indices: dict[str, Tensor], position: Tensor | None) -> None:
    check_tokens("x", x)
    for name, index in indices.items():
        check_form(name, index, x.shape[0], x.device)
    if position is not None:
        check_like("position", position, list(x.shape[1:]), x)


def check_assembly(
    context: Tensor,
    context_index: Tensor,
    target_index: Tensor,
    position: Tensor,
    mask_token: Tensor,
    num_context: int,
) -> None:
    check_tokens("context", context)
    contexts, seen, features = context.shape
    if num_context < 1 or contexts == 0 or contexts % num_context:
        raise ValueError(
            f"context: expected a multiple of num_context = {num_context} rows, at least one of each, got {contexts}"
        )
    check_form("context_index", context_index, contexts, context.device)
    if context_index.shape != (contexts, seen):
        raise ValueError(
            f"context_index: expected int64 [{contexts}, {seen}] as context, got {list(context_index.shape)}"
        )
    check_form("target_index", target_index, contexts // num_context, context.device)
    check_like("position", position, ["N", features], context)
    if mask_token.ndim == 3:
        check_like("mask_token", mask_token, [1, 1, features], context)
    else:
        check_like("mask_token", mask_token, [features], context)
