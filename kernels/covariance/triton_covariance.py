"""The covariance losses on the GPU: which kernels run, in which order, on what memory.

    moments, columns     statistics of both views in one look, then what follows from them per column
    matrix, join         XX' or X'X, X'Y with the operands centred as they are loaded; sums of squares
    loss                 the scalars, and for float32 whether the Gram form cancels too much
    product, finish      the gradient

No launch waits for another's result on the host. Under a group the products are cuBLAS's: their operands come out of
collectives in memory of their own, so that fusing their centring would save one pass in many (algorithm.py).
"""

# mypy: allow-untyped-defs
from collections.abc import Iterable

import torch
import triton
from torch import Tensor

from ..runtime.configuration import KernelConfiguration
from ..runtime.launch import launch
from . import algorithm
from . import products_configurations as products
from . import statistics_configurations as statistics
from .device_statistics import COLUMNS
from .forms import Operand, Product
from .settings import BARLOW, Group, Result, Settings, Views

_ROWS_PER_PROGRAM = 128  # of the statistics
_MOST_PARTS = 64  # of rows, joined one after the other
_PROGRAMS = 264  # of the first product: twice the 132 multiprocessors of an H100
_LEAST_STEPS = 4  # steps along the sum for which a split pays


def configurations() -> Iterable[KernelConfiguration]:
    """Every configuration that the launcher can pick."""
    yield from statistics.configurations()
    yield from products.configurations()


def why_not(*views: Tensor) -> list[str]:
    return [
        f"{name} is {view.dtype}; the kernel takes float32, bfloat16 and float16"
        for name, view in zip(("z_a", "z_b") if len(views) == 2 else ("z",), views, strict=True)
        if view.dtype not in statistics.TYPES
    ]


def loss_and_gradients(views: Views, settings: Settings, gradients: bool, group: Group | None) -> Result:
    if group is not None:
        return algorithm.loss_and_gradients(_Passes(), views, settings, gradients, group)
    if len({view.stride(0) for view in views}) > 1:
        views = tuple(view.contiguous() for view in views)
    return _Launches(views, settings).result(gradients)


class _Launches:
    """One call without a group: its tensors and the arguments that several kernels share."""

    def __init__(self, views: Views, settings: Settings) -> None:
        self.settings, self.views, self.first = settings, views, views[0]
        self.rows, self.features = self.first.shape
        self.stride = self.first.stride(0) if self.rows > 1 else self.features
        self.dtype, self.pair, self.barlow = self.first.dtype, len(views) == 2, settings.form == BARLOW
        size = self.first.element_size()
        self.offset = (views[-1].data_ptr() - self.first.data_ptr()) // size
        numbers = (self.first.data_ptr(), self.offset, self.features, self.stride)
        self.aligned = not any(number % 16 for number in numbers)
        self.gram = self.rows < self.features
        self.side = min(self.rows, self.features)
        self.column_blocks = triton.cdiv(self.features, statistics.BLOCK_D)
        self.wanted = settings.covariance != 0.0  # products
        # Float16 and bfloat16 inputs carry errors of their own that cancellation in float32 stays below.
        self.guarded = self.gram and self.wanted and not self.barlow and self.dtype == torch.float32

    def _new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.first.device)

    def result(self, gradients: bool) -> Result:
        self._statistics()
        if self.wanted:
            self.matrix, self.matrix_rows, self.squares = self._matrix(exact=False)
        else:
            self.matrix = self.matrix_rows = self.squares = self.sums  # not read
        self.exact_squares = self.exact_sums = self.exact_diagonal = self._new(1, dtype=torch.float64)
        self._loss(exact=False)
        if self.guarded:
            self._exact_diagonal()
            self.exact_matrix, self.exact_rows, self.exact_sums = self._matrix(exact=True)
            self._loss(exact=True)
        out = self._gradients() if gradients else None
        return Result(self.loss, self.deviation, self.rank, out)

    # ---- statistics and scalars -------------------------------------------------------------------------------

    def _statistics(self) -> None:
        settings, count = self.settings, len(self.views)
        per_program = max(_ROWS_PER_PROGRAM, triton.cdiv(self.rows, _MOST_PARTS))
        parts = triton.cdiv(self.rows, per_program)
        partial = self._new(parts, statistics.PARTIALS, self.features)
        launch(
            statistics.moments(self.dtype, self.pair, self.aligned),
            (self.column_blocks, parts),
            self.first,
            partial,
            self.offset,
            self.rows,
            per_program,
            self.features,
            self.stride,
        )
        self.columns = self._new(COLUMNS, self.features)
        self.deviation = self._new(count, self.features)
        self.sums = self._new(self.column_blocks, statistics.SUMS)
        launch(
            statistics.columns(self.pair, self.barlow, settings.unbiased),
            (self.column_blocks,),
            partial,
            self.columns,
            self.deviation,
            self.sums,
            parts,
            self.rows,
            per_program,
            self.features,
            settings.eps,
        )
        self.loss, self.rank = self._new(), self._new(1 if self.barlow else count)
        self.flag = self._new(2, dtype=torch.int32)

    def _per_square(self) -> float:
        """What one squared product of the matrix counts in the loss."""
        if self.barlow:
            return 1.0 / self.rows**2
        divisor = max(self.settings.covariance_divisor(self.features), 1)
        return self.settings.covariance / ((self.rows - 1) ** 2 * divisor)

    def _loss(self, exact: bool) -> None:
        settings, entries = self.settings, self.rows * self.features
        views = len(self.views)
        launch(
            statistics.loss(views, self.barlow, self.wanted, self.gram and self.wanted, exact),
            (1,),
            self.loss,
            self.rank,
            self.flag,
            self.sums,
            self.squares,
            self.exact_sums,
            self.exact_squares,
            self.column_blocks,
            self.squares.shape[-1],
            settings.invariance / entries,
            settings.covariance if self.barlow else settings.variance / self.features,
            self._per_square(),
            settings.off_diagonal,
            algorithm.MOST_CANCELLATION,
        )

    # ---- products ---------------------------------------------------------------------------------------------

    def _matrix(self, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(matrices without their diagonals, those of Gram matrices, sums of squares of tiles)"""
        cross = self.barlow and self.gram
        whole = self.barlow and not self.gram  # X'Y has no symmetry
        matrices = 1 if whole else len(self.views)
        block = products.block(exact)
        kernel = products.matrix(self.dtype, not self.gram, self.barlow, exact, self.aligned)
        depth, step = max(self.rows, self.features), kernel.constexprs["BLOCK_K"]
        blocks = triton.cdiv(self.side, block)
        tiles = blocks * blocks if whole else blocks * (blocks + 1) // 2
        splits = _PROGRAMS // (tiles * matrices)
        splits = 1 if exact else max(1, min(splits, products.SPLITS_MOST, depth // (_LEAST_STEPS * step)))
        steps = triton.cdiv(triton.cdiv(depth, step), splits)
        splits = triton.cdiv(depth, steps * step)
        dtype = torch.float64 if exact else torch.float32
        partial = self._new(matrices, splits, self.side, self.side, dtype=dtype)
        launch(
            kernel,
            (blocks * blocks, splits, matrices),
            self.first,
            self.columns,
            self.flag,
            partial,
            self.offset,
            self.rows,
            self.features,
            self.stride,
            steps,
            splits,
        )
        matrix = partial if splits == 1 else self._new(matrices, self.side, self.side)
        blocks = triton.cdiv(self.side, products.REDUCE_BLOCK)
        diagonal = self._new(matrices, self.side, dtype=dtype)
        squares = self._new(1 if cross else matrices, blocks * blocks, dtype=dtype)
        launch(
            products.join(not whole, cross, not self.gram, exact),
            (blocks * blocks, 1 if cross else matrices),
            partial,
            matrix,
            diagonal,
            squares,
            self.flag,
            self.side,
            splits,
        )
        return matrix, diagonal, squares

    def _exact_diagonal(self) -> None:
        views = len(self.views)
        self.exact_diagonal = self._new(views, self.features, dtype=torch.float64)
        self.exact_squares = self._new(views, self.column_blocks, dtype=torch.float64)
        launch(
            products.exact_diagonal(self.dtype),
            (self.column_blocks, views),
            self.first,
            self.columns,
            self.flag,
            self.exact_diagonal,
            self.exact_squares,
            self.offset,
            self.rows,
            self.features,
            self.stride,
        )

    # ---- gradients --------------------------------------------------------------------------------------------

    def _outputs(self, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], int]:
        """(one tensor for each view, elements from the first's address to the second's)"""
        out = tuple(self._new(self.rows, self.features, dtype=dtype) for _ in self.views)
        return out, (out[-1].data_ptr() - out[0].data_ptr()) // out[0].element_size()

    def _gradients(self) -> tuple[Tensor, ...]:
        kept = torch.float32 if self.dtype == torch.float16 else self.dtype
        out, out_offset = self._outputs(kept)
        if self.barlow:
            room, room_offset = (out, out_offset) if kept == torch.float32 else self._outputs(torch.float32)
            dots = self._product(room[0], room_offset, exact=False)
            self._finish(room[0], room_offset, dots, out[0], out_offset)
        elif self.wanted:
            self._product(out[0], out_offset, exact=False)
            if self.guarded:
                self._product(out[0], out_offset, exact=True)
        else:
            self._finish(self.sums, 0, self.sums, out[0], out_offset)
        return out

    def _slopes(self) -> tuple[float, float]:
        """(weight of the hinge's slope, weight of the distance of the views)"""
        settings = self.settings
        hinge = settings.variance / (self.features * (self.rows - 1))
        return hinge, 2.0 * settings.invariance / (self.rows * self.features)

    def _of_product(self) -> float:
        if self.barlow:
            return 2.0 * self.settings.off_diagonal * self.settings.covariance / self.rows**2
        return 4.0 * self._per_square()

    def _product(self, out: Tensor, out_offset: int, exact: bool) -> Tensor:
        kernel = products.product(
            self.dtype,
            not self.gram,
            self.barlow,
            self.pair,
            self.guarded and not exact,
            exact,
            self.aligned,
        )
        row_blocks = triton.cdiv(self.rows, kernel.constexprs["BLOCK_N"])
        dots = self._new(len(self.views), row_blocks, self.features) if self.barlow else self.sums
        launch(
            kernel,
            (triton.cdiv(self.features, kernel.constexprs["BLOCK_D"]), row_blocks, len(self.views)),
            self.exact_matrix if exact else self.matrix,
            self.exact_rows if exact else self.matrix_rows,
            self.first,
            self.columns,
            self.exact_diagonal,
            self.flag,
            out,
            dots,
            self.offset,
            out_offset,
            self.rows,
            self.features,
            self.stride,
            self.settings.eps,
            *self._slopes(),
            self._of_product(),
        )
        return dots

    def _finish(
        self, product: Tensor, product_offset: int, dots: Tensor, out: Tensor, out_offset: int
    ) -> None:
        kernel = statistics.finish(
            self.dtype, self.pair, self.barlow, self.barlow and self.gram, self.aligned
        )
        launch(
            kernel,
            (self.column_blocks, triton.cdiv(self.rows, statistics.BLOCK_ROWS), len(self.views)),
            self.first,
            self.columns,
            product,
            dots,
            out,
            self.offset,
            product_offset,
            out_offset,
            self.rows,
            dots.shape[1] if self.barlow else 0,
            self.features,
            self.stride,
            self.settings.eps,
            *self._slopes(),
            self._of_product(),
            self.settings.off_diagonal,
            self.settings.covariance,
        )


class _Passes:
    """The elementwise passes, and the library's products, that the algorithm asks for under a group."""

    def moments(self, views: Views) -> Tensor:
        rows, features = views[0].shape
        width = 2 if len(views) == 1 else 6
        if rows == 0:
            return views[0].new_zeros((width, features), dtype=torch.float64)
        if len({view.stride(0) for view in views}) > 1:
            views = tuple(view.contiguous() for view in views)
        first = views[0]
        stride = first.stride(0) if rows > 1 else features
        offset = (views[-1].data_ptr() - first.data_ptr()) // first.element_size()
        aligned = not any(number % 16 for number in (first.data_ptr(), offset, features, stride))
        per_program = max(_ROWS_PER_PROGRAM, triton.cdiv(rows, _MOST_PARTS))
        parts = triton.cdiv(rows, per_program)
        partial = torch.empty(
            (parts, statistics.PARTIALS, features), dtype=torch.float32, device=first.device
        )
        launch(
            statistics.moments(first.dtype, len(views) == 2, aligned),
            (triton.cdiv(features, statistics.BLOCK_D), parts),
            first,
            partial,
            offset,
            rows,
            per_program,
            features,
            stride,
        )
        counts = torch.full((parts,), per_program, dtype=torch.float64, device=first.device)
        counts[-1:] = rows - (parts - 1) * per_program
        merged = algorithm.merge(counts, partial[:, :width].double())
        for view, shift in enumerate(partial[0, 6 : 6 + len(views)]):
            merged[2 * view] += shift
        return merged

    def centre(self, z: Tensor, mean: Tensor, scale: Tensor | None, out: Tensor) -> None:
        torch.sub(z.float(), mean.float(), out=out)
        if scale is not None:
            out.mul_(scale.float())

    def finish(
        self, product: Product | None, views: Views, coefficients: Tensor, distance: float, out: Tensor
    ) -> None:
        of_product, of_own, of_other, of_diagonal, mean, other_mean = coefficients.float()
        value = views[0].float() - mean
        if product is None:
            value.mul_(of_own)
        elif product.diagonal is None:
            value.mul_(of_own).addcmul_(product.beside, of_product.expand_as(value))
        else:
            value.mul_(torch.addcmul(of_own, of_diagonal, product.diagonal[:, None]))
            value.addcmul_(product.beside, of_product.expand_as(value))
        if len(views) == 2:
            value.addcmul_(views[1].float() - other_mean, of_other.expand_as(value))
            value.add_(views[0].float() - views[1].float(), alpha=distance)
        out.copy_(value)

    def column_dots(self, product: Product, x: Operand) -> Tensor:
        centred, values = x.z.float() - x.mean.float(), product.beside
        if product.diagonal is not None:
            scaled = centred if x.scale is None else centred * x.scale.float()
            values = torch.addcmul(values, scaled, product.diagonal[:, None])
        return (values * centred).sum(dim=0, dtype=torch.float64)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dtype=torch.float64)

    def row_squares(self, x: Tensor) -> Tensor:
        return x.square().sum(dim=1, dtype=torch.float64)

    def add_square(self, x: Tensor, out: Tensor) -> None:
        out.addmm_(x, x.T)

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.mm(a, b, out=out)
