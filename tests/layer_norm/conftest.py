from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast import add_layer_norm, layer_norm
from jepa_fast.bench.measure import check_error

EPS = 1e-6
VECTORS = ("update_bias", "layer_scale")  # of the options, those with a gradient


@dataclass
class Inputs:
    """x: None for `layer_norm`. upstream: gradients of normalized and of new_residual, None where there is none."""

    x: Tensor | None
    residual: Tensor
    weight: Tensor
    bias: Tensor
    upstream: tuple[Tensor | None, Tensor | None]
    options: dict[str, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        def maybe(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return Inputs(
            maybe(self.x),
            change(self.residual),
            change(self.weight),
            change(self.bias),
            (maybe(self.upstream[0]), maybe(self.upstream[1])),
            {name: change(tensor) for name, tensor in self.options.items()},
        )


def _draw(
    *shape: int,
    dtypes: Sequence[torch.dtype] = (torch.float32,) * 3,
    options: Sequence[str] = (),
    add: bool = True,
    stream: bool = True,
    mean: float = 0.0,
    seed: int = 0,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    width, (of_x, of_residual, of_normalized) = shape[-1], dtypes
    drawn = {
        "update_bias": normal(width),
        "layer_scale": 0.5 + 0.1 * normal(width),
        "drop_path": torch.tensor([0.0, 1.25]).repeat(shape[0])[: shape[0]],
    }
    return Inputs(
        normal(*shape).to(of_x) if add else None,
        (2.0 * normal(*shape) + mean).to(of_residual),
        1.0 + 0.2 * normal(width),
        normal(width),
        # A mean keeps the sums over rows away from zero, where a relative error says nothing.
        (
            (0.5 + normal(*shape)).to(of_normalized),
            normal(*shape).to(of_residual) if add and stream else None,
        ),
        {name: drawn[name] for name in options},
    )


@pytest.fixture
def draw() -> Callable[..., Inputs]:
    """Makes `Inputs` of a shape; dtypes: of x, residual and normalized."""
    return _draw


def _apply(inputs: Inputs, implementation: str, dtype: torch.dtype | None) -> tuple[Tensor, ...]:
    options: dict[str, Any] = {"eps": EPS, "dtype": dtype, "implementation": implementation}
    if inputs.x is None:
        return (layer_norm(inputs.residual, inputs.weight, inputs.bias, **options),)
    return add_layer_norm(inputs.x, inputs.residual, inputs.weight, inputs.bias, **inputs.options, **options)


def _published(inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """As eager code does under autocast: the sum in the streams' dtypes, LayerNorm in float32."""
    new = inputs.residual
    if inputs.x is not None:
        update = inputs.x
        for name, vector in inputs.options.items():
            if name == "update_bias":
                update = update + vector.to(update.dtype)
            elif name == "layer_scale":
                update = update * vector.to(update.dtype)
            else:
                update = update * vector.to(update.dtype).view(-1, *[1] * (update.ndim - 1))
        new = (inputs.residual + update).to(inputs.residual.dtype)
    working = torch.promote_types(new.dtype, torch.float32)
    width = new.shape[-1:]
    normalized = F.layer_norm(new.to(working), width, inputs.weight.to(working), inputs.bias.to(working), EPS)
    return (normalized.to(dtype),) if inputs.x is None else (normalized.to(dtype), new)


def _with_gradients(inputs: Inputs, function: Callable[[Inputs], tuple[Tensor, ...]]) -> list[Tensor]:
    leaves = inputs.map(lambda tensor: tensor.detach().clone(memory_format=torch.preserve_format))
    named = [leaves.residual, leaves.weight, leaves.bias, *([] if leaves.x is None else [leaves.x])]
    named += [leaves.options[name] for name in VECTORS if name in leaves.options]
    for tensor in named:
        tensor.requires_grad_()
    outputs = function(leaves)
    pairs = [(y, g) for y, g in zip(outputs, inputs.upstream, strict=False) if g is not None]
    gradients = torch.autograd.grad([y for y, _ in pairs], named, [g for _, g in pairs])
    return [*(output.detach() for output in outputs), *gradients]


@pytest.fixture
def results() -> Callable[..., list[Tensor]]:
    """[outputs..., gradients...] of the op; the gradients are of residual, weight, bias, x and the optional vectors."""

    def run(inputs: Inputs, implementation: str = "auto") -> list[Tensor]:
        dtype = inputs.upstream[0].dtype if inputs.upstream[0] is not None else None
        return _with_gradients(inputs, lambda leaves: _apply(leaves, implementation, dtype))

    return run


@pytest.fixture
def published() -> Callable[[Inputs], list[Tensor]]:
    """The same by plain PyTorch."""

    def run(inputs: Inputs) -> list[Tensor]:
        assert inputs.upstream[0] is not None
        dtype = inputs.upstream[0].dtype
        return _with_gradients(inputs, lambda leaves: _published(leaves, dtype))

    return run


@pytest.fixture
def hold(
    results: Callable[..., list[Tensor]], published: Callable[[Inputs], list[Tensor]]
) -> Callable[[Inputs, str], None]:
    """Checks an implementation against the float64 reference with the error budget of the design. The reference itself
    is held against PyTorch's LayerNorm in test_semantics.py."""

    def check(inputs: Inputs, implementation: str) -> None:
        oracle = results(inputs.map(lambda tensor: tensor.double()), "reference")
        result = check_error(results(inputs, implementation), published(inputs), oracle)
        assert result.passed, result.reason

    return check
