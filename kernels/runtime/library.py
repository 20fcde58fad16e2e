"""The torch.library namespace `jepa_fast`, for `torch.compile`.

In eager mode an op calls its implementation directly, which saves the dispatcher's microseconds; under
`torch.compile` it calls the registered op, which the compiler treats as one opaque node. So it does for tensors whose
memory is not what they are (fake ones, those under `torch.func`, negated views), which the dispatcher knows how to
treat.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_LIBRARY = torch.library.Library("jepa_fast", "FRAGMENT")


def as_node(*tensors: torch.Tensor) -> bool:
    """Whether a call has to go through the dispatcher.

    Raises NotImplementedError where a tensor carries a forward-mode derivative, which would be dropped.
    """
    if torch.compiler.is_compiling():
        return True
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError("forward-mode derivatives: expected none, jepa_fast has reverse mode alone")
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    for x in tensors:  # noqa: SIM110, in every eager call, which a generator would slow down
        if type(x) not in _PLAIN or x.is_meta or x.is_neg():
            return True
    return False


def define(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register `function` as `jepa_fast::<schema>`; `fake` gives the outputs' shapes and dtypes alone."""
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"jepa_fast::{name}", fake, lib=_LIBRARY)
