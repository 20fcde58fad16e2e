"""The two ways to a sum of squared covariances and its product with the views, chosen by cost.

Both work on X = (Z - mean) * scale, in the notation of README.md:

    Gram form, N < D     |X'Y|^2 = <XX', YY'>, and (X'Y)Y' is X'(YY'): N^2 D operations, nothing D x D
    tiled form, N >= D   panels of X'Y, whose diagonal is skipped: N D^2 operations, only the upper part if Y is X

`passes` are an implementation's elementwise passes, and those products that it may have better than torch.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .settings import Group, Views

_BLOCK = 128  # of the rows of a symmetric product: what lies above its diagonal blocks is not formed
_TERMS = 1024  # of a sum of such a product that are taken at a time
_TILE = 1024  # columns or rows of an operand that are centred at a time, where no buffer has room for all
_PANEL = 1024  # rows of X'Y that are held at a time
_SCRATCH = 1 << 21  # values of a centred tile, 8 MB
_PRODUCT = 1 << 19  # values of a product that waits to be finished: 2 MB, which stay in the cache
_NARROWEST = 256  # columns or rows of such a product


class Passes(Protocol):
    """The elementwise passes of an implementation, and the products that take most of the time."""

    def moments(self, views: Views) -> Tensor: ...

    def centre(self, z: Tensor, mean: Tensor, scale: Tensor | None, out: Tensor) -> None: ...

    def finish(
        self,
        product: "Product | None",
        views: Views,
        coefficients: Tensor,
        distance: float,
        out: Tensor,
    ) -> None: ...

    def column_dots(self, product: "Product", x: "Operand") -> Tensor: ...

    def dot(self, a: Tensor, b: Tensor) -> Tensor: ...

    def row_squares(self, x: Tensor) -> Tensor: ...

    def add_square(self, x: Tensor, out: Tensor) -> None:
        """out += XX'. out: float32 [N, N], symmetric."""

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """out = a b."""


class Gram(NamedTuple):
    """XX' of some rows and all: beside float32 [rows, N], whose diagonal is zero; diagonal float64 [rows].

    The diagonal is a sum of squares where the rest are sums of either sign, so it outweighs them: apart, it costs a
    product with the matrix no places, and is exact.
    """

    beside: Tensor
    diagonal: Tensor


class Product(NamedTuple):
    """beside + diagonal[:, None] * X: a product with X, float32 [rows, columns], whose last step is still to be done.

    diagonal: float32 [rows], or None where there is no such step.
    """

    beside: Tensor
    diagonal: Tensor | None


class Part(NamedTuple):
    """Some rows and columns of a view, and the product there; none where a gradient has no product."""

    rows: slice
    columns: slice
    product: Product | None


Products = Iterable[Part]  # each product's memory is that of the one before


class Operand(NamedTuple):
    """X = (z - mean) * scale without its values: z [N, D] as stored, mean and scale float64 [D]."""

    z: Tensor
    mean: Tensor
    scale: Tensor | None

    def columns(self, start: int, stop: int) -> "Operand":
        scale = None if self.scale is None else self.scale[start:stop]
        return Operand(self.z[:, start:stop], self.mean[start:stop], scale)

    def rows(self, mine: slice) -> "Operand":
        return Operand(self.z[mine], self.mean, self.scale)

    def write(self, passes: Passes, out: Tensor) -> Tensor:
        passes.centre(self.z, self.mean, self.scale, out)
        return out

    def exact(self) -> Tensor:
        values = self.z.double() - self.mean
        return values if self.scale is None else values.mul_(self.scale)


# ---- Gram form ------------------------------------------------------------------------------------------------


def gram_matrix(passes: Passes, x: Operand, mine: slice | None, held: Tensor | None) -> Gram:
    """XX', or of the rows `mine` alone. held: float32 [N, D], receives X."""
    rows, features = x.z.shape
    own = slice(0, rows) if mine is None else mine
    count = own.stop - own.start
    out = x.z.new_zeros((count, rows), dtype=torch.float32)
    diagonal = x.z.new_zeros(count, dtype=torch.float64)
    width = features if held is not None else min(features, _TILE)
    tile = x.z.new_empty((rows, width), dtype=torch.float32) if held is None else held
    for start in range(0, features, width):
        part = x.columns(start, min(start + width, features))
        values = part.write(passes, tile[:, : part.z.shape[1]])
        diagonal += passes.row_squares(values[own])
        if mine is not None:
            out.addmm_(values[mine], values.T)
        else:
            passes.add_square(values, out)
    out[:, own].fill_diagonal_(0.0)
    return Gram(out, diagonal)


def gram_dot(passes: Passes, a: Gram, b: Gram) -> Tensor:
    """The sum over entries of the products of two Gram matrices."""
    return passes.dot(a.beside, b.beside) + (a.diagonal * b.diagonal).sum()


def add_square(x: Tensor, out: Tensor) -> None:
    """`Passes.add_square` by torch, which has no symmetric product."""
    rows, features = x.shape
    for term in range(0, features, _TERMS):
        terms = x[:, term : term + _TERMS]
        for block in range(0, rows, _BLOCK):
            stop = min(block + _BLOCK, rows)
            out[block:stop, :stop].addmm_(terms[block:stop], terms[:stop].T)
    for block in range(0, rows, _BLOCK):
        stop = block + _BLOCK
        out[block:stop, stop:] = out[stop:, block:stop].T


def gram_products(
    passes: Passes, gram: Gram, x: Operand, mine: slice, held: Tensor | None, at_once: bool
) -> Products:
    """The rows `mine` of XX' times X.

    held: X where `gram_matrix` left it; its columns are free once their product is there.
    at_once: all columns in one product, where each is followed by a collective.
    """
    (rows, features), count = x.z.shape, gram.beside.shape[0]
    width = features if at_once else min(features, max(_NARROWEST, _PRODUCT // rows))
    room = x.z.new_empty(count * width, dtype=torch.float32)
    tile = x.z.new_empty((rows, width), dtype=torch.float32) if held is None else held
    diagonal = gram.diagonal.float()
    for start in range(0, features, width):
        part = x.columns(start, min(start + width, features))
        columns, wide = slice(start, start + part.z.shape[1]), part.z.shape[1]
        values = part.write(passes, tile[:, :wide]) if held is None else held[:, columns]
        product = room[: count * wide].view(count, wide)
        passes.multiply(gram.beside, values, product)
        yield Part(slice(0, count), columns, Product(product, diagonal))


def exact_gram_matrix(x: Operand, mine: slice) -> Tensor:
    """XX' of the rows `mine` in float64."""
    rows, features = x.z.shape
    out = x.z.new_zeros((x.z[mine].shape[0], rows), dtype=torch.float64)
    for start in range(0, features, _TILE):
        values = x.columns(start, min(start + _TILE, features)).exact()
        out.addmm_(values[mine], values.T)
    return out


def exact_column_dots(x: Operand, y: Operand) -> Tensor:
    """The diagonal of X'Y in float64."""
    parts = []
    for start in range(0, x.z.shape[1], _TILE):
        stop = start + _TILE
        parts.append((x.columns(start, stop).exact() * y.columns(start, stop).exact()).sum(dim=0))
    return torch.cat(parts)


def exact_gram_product(
    gram: Tensor, x: Operand, y: Operand, diagonal: Tensor, mine: slice, out: Tensor
) -> None:
    """out = gram @ X - Y * diagonal of the rows `mine`: in float64, rounded once. out: float32."""
    features = x.z.shape[1]
    for start in range(0, features, _TILE):
        stop = min(start + _TILE, features)
        product = gram @ x.columns(start, stop).exact()
        product -= y.columns(start, stop).rows(mine).exact().mul_(diagonal[start:stop])
        out[:, start:stop] = product


# ---- tiled form -----------------------------------------------------------------------------------------------


class _RowTiles:
    """Operands in runs of rows, centred; the values of one run are overwritten by the next, and one alone is kept.

    rooms: float32 [N, D], one for each operand, where all rows are to be kept.
    """

    def __init__(self, passes: Passes, operands: Sequence[Operand], rooms: Sequence[Tensor] | None) -> None:
        self._passes, self._operands = passes, operands
        self._rows, features = operands[0].z.shape
        height = self._rows if rooms is not None else min(self._rows, max(_TILE, _SCRATCH // features))
        self._height = max(1, height)
        shape = (self._height, features)
        self._tiles = rooms or [x.z.new_empty(shape, dtype=torch.float32) for x in operands]
        self._kept = False

    def __iter__(self) -> Iterator[tuple[slice, list[Tensor]]]:
        for start in range(0, self._rows, self._height):
            run = slice(start, min(start + self._height, self._rows))
            values = [tile[: run.stop - run.start] for tile in self._tiles]
            if not self._kept:
                for x, tile in zip(self._operands, values, strict=True):
                    x.rows(run).write(self._passes, tile)
            yield run, values
        self._kept = self._height >= self._rows


def _row_products(passes: Passes, x: Tensor, matrix: Tensor) -> Products:
    """X times a matrix [D, D]; the rows of X are free once their product is there."""
    rows, features = x.shape
    height = min(rows, max(_NARROWEST, _PRODUCT // features))
    room = x.new_empty((height, features))
    for start in range(0, rows, height or 1):
        run = slice(start, min(start + height, rows))
        product = room[: run.stop - start]
        passes.multiply(x[run], matrix, product)
        yield Part(run, slice(0, features), Product(product, None))


def whole(product: Tensor) -> Products:
    """A product with nothing left to be done, at once."""
    rows, features = product.shape
    return [Part(slice(0, rows), slice(0, features), Product(product, None))]


def tiled_square(
    passes: Passes, x: Operand, room: Tensor | None, group: Group | None
) -> tuple[Tensor, Products | None]:
    """(The sum of squares of X'X without its diagonal, X (X'X without its diagonal) if it has a room).

    room: float32 [N, D] that holds the product, or X until its product is there.
    """
    features = x.z.shape[1]
    total = torch.zeros((), dtype=torch.float64, device=x.z.device)
    hold = room is not None and features <= _PANEL
    tiles = _RowTiles(passes, [x], [room] if room is not None and hold else None)
    for first in range(0, features, _PANEL):
        last = min(first + _PANEL, features)
        width = last - first
        panel = x.z.new_zeros((width, features - first), dtype=torch.float32)
        for _, (values,) in tiles:
            for block in range(first, last, _BLOCK):
                stop = min(block + _BLOCK, last)
                panel[block - first : stop - first, block - first :].addmm_(
                    values[:, block:stop].T, values[:, block:]
                )
        square = panel[:, :width]
        for block in range(0, width, _BLOCK):
            square[block + _BLOCK :, block : block + _BLOCK] = square[
                block : block + _BLOCK, block + _BLOCK :
            ].T
        if group is not None:
            dist.all_reduce(panel, group=group)
        square.fill_diagonal_(0.0)
        total += passes.dot(square, square)
        rest = panel[:, width:]
        if rest.shape[1]:
            total += 2.0 * passes.dot(rest, rest)
        if room is None:
            continue
        if hold:
            return total, _row_products(passes, room, panel)
        for run, (values,) in tiles:
            room[run, first:].addmm_(values[:, first:last], panel, beta=1.0 if first else 0.0)
            if rest.shape[1]:
                room[run, first:last].addmm_(values[:, last:], rest.T)
    return total, None if room is None else whole(room)


def tiled_pair(
    passes: Passes,
    x: Operand,
    y: Operand,
    factor: float,
    on_diagonal: Tensor,
    rooms: tuple[Tensor, Tensor] | None,
    group: Group | None,
) -> tuple[Tensor, list[Products]]:
    """M is X'Y without its diagonal: (the sums of squares of its rows and of its columns, float64 [2, D]; Y W' and
    X W with W = factor * M + diag(on_diagonal), to be taken in step, or nothing without rooms).

    rooms: float32 [N, D] each; they hold the products, or X and Y until their products are there.
    """
    features = x.z.shape[1]
    squares = torch.zeros((2, features), dtype=torch.float64, device=x.z.device)
    hold = rooms is not None and features <= _PANEL
    tiles = _RowTiles(passes, [x, y], rooms if hold else None)
    for first in range(0, features, _PANEL):
        last = min(first + _PANEL, features)
        panel = x.z.new_zeros((last - first, features), dtype=torch.float32)
        for _, (left, right) in tiles:
            panel.addmm_(left[:, first:last].T, right)
        if group is not None:
            dist.all_reduce(panel, group=group)
        panel[:, first:last].fill_diagonal_(0.0)
        turned = panel.T.contiguous()
        squares[0, first:last] = passes.row_squares(panel)
        squares[1] += passes.row_squares(turned)
        if rooms is None:
            continue
        for matrix, square in ((panel, panel[:, first:last]), (turned, turned[first:last])):
            matrix.mul_(factor)
            square.diagonal().copy_(on_diagonal[first:last])
        if hold:
            return squares, [_row_products(passes, rooms[1], turned), _row_products(passes, rooms[0], panel)]
        for run, (left, right) in tiles:
            torch.mm(right, turned, out=rooms[0][run, first:last])
            rooms[1][run].addmm_(left[:, first:last], panel, beta=1.0 if first else 0.0)
    return squares, [whole(room) for room in rooms or ()]
