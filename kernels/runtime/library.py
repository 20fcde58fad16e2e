"""The torch.library namespace `jepa_fast`, for `torch.compile`.

In eager mode an op calls its implementation directly, which saves the dispatcher's microseconds; under
`torch.compile` it calls the registered op, which the compiler treats as one opaque node.
"""

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("jepa_fast", "FRAGMENT")


def define(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register `function` as `jepa_fast::<schema>`; `fake` gives the outputs' shapes and dtypes alone."""
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"jepa_fast::{name}", fake, lib=_LIBRARY)
