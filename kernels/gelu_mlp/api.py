"""The MLP of a transformer block: linear, exact GELU, linear."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime import library
from ..runtime.choice import Explanation, Operation
from ..runtime.derivative import differentiable_once
from ..runtime.products import cast_parameter, linear, linear_gradients, multiply

__all__ = ["gelu_mlp"]

OPERATION = Operation("gelu_mlp", __package__, triton="triton_gelu_mlp", native="native")


def gelu_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    recompute: bool = False,
    implementation: str = "auto",
) -> Tensor:
    """`gelu(x w1' + b1) w2' + b2` with the exact GELU, x Phi(x) (arXiv 1606.08415, section 2).

    x: [..., K]. w1: [H, K]. b1: [H]. w2: [N, H]. b2: [N]. Returns [..., N].
    recompute: keep only the hidden layer before the GELU for the backward, half of what it keeps otherwise. The
        backward forms gelu and its slope from one look at it, so this costs it one more write.
    implementation: of the GELU and its backward; the products are PyTorch's. "auto", "triton", "native" or "reference".

    All is computed in one dtype, and the result has it: autocast's where autocast is on for the device, else that of x;
    float32, bfloat16 or float16 in the kernels, float64 in the reference. Parameters are cast to it. GELU and sums
    are formed in float32. Differentiable once in all five tensors; gradients have the dtypes of their tensors. The
    backward works in the memory of the hidden layer that it finds, the largest tensor of a step: it runs once, and a
    second one is refused. The gradient of b1 comes out of the GELU's backward and, as the GELU, does not depend on the
    number of threads; the rest is as deterministic as PyTorch's products.

    Under torch.compile the GELU is one op, `recompute` is left to the compiler, and the backward may run again.

    Raises ValueError for shapes that do not fit, TypeError for dtypes, RuntimeError if a requested implementation
    cannot serve, or for a second backward.
    """
    _check(x, w1, b1, w2, b2)
    dtype = _compute_dtype(x)
    x = x.to(dtype)
    if library.as_node(x):
        before = F.linear(x, w1.to(dtype), b1.to(dtype))
        return F.linear(torch.ops.jepa_fast.gelu(before, implementation), w2.to(dtype), b2.to(dtype))
    module = OPERATION.choose(implementation, x.device, dtype, w1.shape[0])
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, w1, b1, w2, b2)):
        return _GELUMLP.apply(x, w1, b1, w2, b2, recompute, module)
    w1, b1, w2, b2 = (cast_parameter(parameter, dtype) for parameter in (w1, b1, w2, b2))
    ours = _multiplies(module)
    before = linear(x, w1, b1, ours=ours)
    return linear(module.gelu(before, before), w2, b2, ours=ours)


def _multiplies(module: Any) -> bool:
    """Whether the products may be ours, too: the reference is PyTorch's alone."""
    return module is not OPERATION.module("reference")


class _GELUMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, recompute: bool, module: Any
    ) -> Tensor:
        ctx.dtypes, ctx.module, ctx.consumed = [t.dtype for t in (w1, b1, w2, b2)], module, False
        w1, b1, w2, b2 = (cast_parameter(parameter, x.dtype) for parameter in (w1, b1, w2, b2))
        ours = _multiplies(module)
        before = linear(x, w1, b1, ours=ours)
        after = module.gelu(before)
        ctx.save_for_backward(x, w1, w2, before, None if recompute else after)
        return linear(after, w2, b2, ours=ours)

    @staticmethod
    @differentiable_once("gelu_mlp")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.consumed:
            raise RuntimeError(
                "gelu_mlp: expected one backward, which works in the memory of the hidden layer, got a second"
            )
        ctx.consumed = True
        x, w1, w2, before, after = ctx.saved_tensors
        shape, needs_x = x.shape, ctx.needs_input_grad[0]
        x, grad, before = (tensor.flatten(0, -2) for tensor in (x, grad, before))
        ours = _multiplies(ctx.module)
        if after is None:
            work = multiply(grad, w2, ours=ours)
            grad_b1 = ctx.module.gelu_backward_(work, before, True)
            second = linear_gradients(grad, before, w2, wants_x=False, ours=ours)
        else:
            work = after.flatten(0, -2)
            second = linear_gradients(grad, work, w2, out=work, ours=ours)
            grad_b1 = ctx.module.gelu_backward_(work, before, False)
        first = linear_gradients(work, x, w1, wants_x=needs_x, wants_bias=False, ours=ours)
        of_w1, of_b1, of_w2, of_b2 = ctx.dtypes
        return (
            None if first.x is None else first.x.view(shape),
            first.weight.to(of_w1),
            grad_b1.to(of_b1),
            second.weight.to(of_w2),
            None if second.bias is None else second.bias.to(of_b2),
            None,
            None,
        )


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _check(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
    tensors = {"x": x, "w1": w1, "b1": b1, "w2": w2, "b2": b2}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} of x, got {tensor.device}")
    if x.ndim < 2:
        raise ValueError(f"x: expected [..., K] with at least one leading dimension, got {list(x.shape)}")
    for name, expected in (("w1", "[H, K]"), ("w2", "[N, H]")):
        if tensors[name].ndim != 2:
            raise ValueError(f"{name}: expected {expected}, got {list(tensors[name].shape)}")
    hidden = w1.shape[0]
    for name, shape in (
        ("w1", [hidden, x.shape[-1]]),
        ("b1", [hidden]),
        ("w2", [w2.shape[0], hidden]),
        ("b2", [w2.shape[0]]),
    ):
        if list(tensors[name].shape) != shape:
            raise ValueError(f"{name}: expected {shape}, got {list(tensors[name].shape)}")


def explain(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, **options: Any) -> Explanation:
    """What `gelu_mlp` would choose for these arguments, and why the others are refused."""
    _check(x, w1, b1, w2, b2)
    return OPERATION.explain(x.device, _compute_dtype(x), w1.shape[0])


def example_inputs(device: torch.device) -> tuple[Any, ...]:
    """Small arguments of `gelu_mlp`, for `jepa-fast doctor`."""
    x, w1, w2 = (torch.zeros(shape, device=device) for shape in ((2, 8, 16), (64, 16), (16, 64)))
    return x, w1, torch.zeros(64, device=device), w2, torch.zeros(16, device=device)


def _gelu(before: Tensor, implementation: str) -> Tensor:
    module = OPERATION.choose(implementation, before.device, before.dtype, before.shape[-1])
    return module.gelu(before.contiguous())


def _gelu_backward(grad: Tensor, before: Tensor, implementation: str) -> Tensor:
    module = OPERATION.choose(implementation, before.device, before.dtype, before.shape[-1])
    out = grad.clone(memory_format=torch.contiguous_format)
    module.gelu_backward_(out.flatten(0, -2), before.contiguous().flatten(0, -2), False)
    return out


library.define("gelu(Tensor before, str implementation) -> Tensor", _gelu, lambda x, _: x.new_empty(x.shape))
library.define(
    "gelu_backward(Tensor grad, Tensor before, str implementation) -> Tensor",
    _gelu_backward,
    lambda grad, *_: grad.new_empty(grad.shape),
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    before, ctx.implementation = inputs
    ctx.save_for_backward(before)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.jepa_fast.gelu_backward(grad, *ctx.saved_tensors, ctx.implementation), None


torch.library.register_autograd("jepa_fast::gelu", _gradient, setup_context=_keep)
