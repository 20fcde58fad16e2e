"""The covariance losses on the CPU: elementwise passes in C++ (cpu.cpp), matrix products there or by torch."""

import functools

import torch
from torch import Tensor

from ..runtime import native
from . import algorithm, forms
from .forms import Operand, Product
from .settings import Group, Result, Settings, Views

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(*views: Tensor) -> list[str]:
    return [
        f"{name} is {view.dtype}; the kernel takes float32, bfloat16 and float16"
        for name, view in zip(("z_a", "z_b") if len(views) == 2 else ("z",), views, strict=True)
        if view.dtype not in _TYPES
    ]


def loss_and_gradients(views: Views, settings: Settings, gradients: bool, group: Group | None) -> Result:
    return algorithm.loss_and_gradients(_Passes(), views, settings, gradients, group)


@functools.cache
def _has(product: str) -> bool:
    """Whether the "square" or the "product" of cpu_products.cpp is faster than torch's on this CPU."""
    return bool(native.function(f"covariance_has_{product}")())


class _Passes:
    """The elementwise passes and the products that the algorithm asks for."""

    def moments(self, views: Views) -> Tensor:
        a, b = views[0], views[1] if len(views) == 2 else None
        out = torch.empty((2 if b is None else 6, a.shape[1]), dtype=torch.float64)
        native.function("covariance_moments")(a, b, out, torch.get_num_threads())
        return out

    def centre(self, z: Tensor, mean: Tensor, scale: Tensor | None, out: Tensor) -> None:
        native.function("covariance_centre")(z, mean, scale, out, torch.get_num_threads())

    def finish(
        self, product: Product | None, views: Views, coefficients: Tensor, distance: float, out: Tensor
    ) -> None:
        a, b = views[0], views[1] if len(views) == 2 else None
        values, diagonal = (None, None) if product is None else product
        threads = torch.get_num_threads()
        native.function("covariance_finish")(values, diagonal, a, b, coefficients, distance, out, threads)

    def column_dots(self, product: Product, x: Operand) -> Tensor:
        out = torch.empty(x.z.shape[1], dtype=torch.float64)
        threads = torch.get_num_threads()
        native.function("covariance_column_dots")(*product, x.scale, x.z, x.mean, out, threads)
        return out

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        value = native.function("covariance_dot")(a, b, torch.get_num_threads())
        return torch.tensor(value, dtype=torch.float64)

    def row_squares(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape[0], dtype=torch.float64)
        native.function("covariance_row_squares")(x, out, torch.get_num_threads())
        return out

    def add_square(self, x: Tensor, out: Tensor) -> None:
        if _has("square"):
            native.function("covariance_add_square")(x, out, torch.get_num_threads())
        else:
            forms.add_square(x, out)

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        if _has("product"):
            native.function("covariance_product")(a, b, out, torch.get_num_threads())
        else:
            torch.mm(a, b, out=out)
