"""The covariance losses and their gradients out of few passes: statistics, products, one pass for the gradients.

In single precision. Whatever the group, every process arrives at the same bits of the loss and of what is decided.
The derivation is in README.md.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..runtime import collective
from . import forms
from .forms import Operand, Part, Passes, Products
from .settings import BARLOW, Group, Result, Settings, Views

# A sum over all pairs minus its diagonal loses what the diagonal is larger. Float32 keeps the error budget while the
# largest diagonal term is below this many times what is left (README.md: Precision); beyond, products are float64.
MOST_CANCELLATION = 4.0

_MEANS, _SQUARES = slice(0, 4, 2), slice(1, 4, 2)  # rows of the moments


def loss_and_gradients(
    passes: Passes, views: Views, settings: Settings, gradients: bool, group: Group | None
) -> Result:
    """group: None, or a group of at least two processes."""
    with torch.no_grad(), torch.autocast(views[0].device.type, enabled=False):
        return _Computation(passes, views, settings, gradients, group).result()


def merge(counts: Tensor, moments: Tensor) -> Tensor:
    """The moments of all rows from those of parts: counts [parts], moments [parts, 2 or 6, D], float64.

    Chan, Golub and LeVeque's formula: deviations about each part's mean, plus those of the means.
    """
    weights = counts[:, None]
    total = counts.sum()
    out = moments.sum(dim=0)
    means = [(weights * moments[:, row]).sum(dim=0) / total for row in range(0, moments.shape[1], 2)[:2]]
    off = [moments[:, 2 * view] - mean for view, mean in enumerate(means)]
    for view, mean in enumerate(means):
        out[2 * view] = mean
        out[2 * view + 1] += (weights * off[view].square()).sum(dim=0)
    if len(means) == 2:
        out[4] += (weights * off[0] * off[1]).sum(dim=0)
    return out


class _Side(NamedTuple):
    """What turns the products of a view into its gradient.

    coefficients: float64 [6, D], as `Passes.finish` takes them. views: whose values it takes, its own first.
    answer: what the coefficient of the own values receives for each unit of the product's dots with the centred
    columns; none where nothing. scale: of the product's operand.
    """

    view: int
    coefficients: Tensor
    views: tuple[int, ...]
    distance: float
    answer: Tensor | None
    scale: Tensor | None


class _Computation:
    """One call: what its steps share."""

    def __init__(
        self, passes: Passes, views: Views, settings: Settings, gradients: bool, group: Group | None
    ) -> None:
        self.passes, self.views, self.settings, self.group = passes, views, settings, group
        own, self.features = views[0].shape
        moments = passes.moments(views)
        self.counts, self.mine = [own], slice(0, own)
        if group is not None:
            moments = self._join(own, moments)
        self.rows = sum(self.counts)
        self.means, self.squares = moments[_MEANS], moments[_SQUARES]
        self.product_sum: Tensor | None = None
        self.distance_sum: Tensor | None = None
        if len(views) == 2:
            self.product_sum, self.distance_sum = moments[4], moments[5].sum()
        self.gram = self.rows < self.features
        self.deviation = (self.squares / (self.rows - 1)).sqrt()
        # Half precision has no range for gradients that a loss scale has not seen yet.
        kept = torch.float32 if views[0].dtype == torch.float16 else views[0].dtype
        self.out = tuple(torch.empty_like(view, dtype=kept) for view in views) if gradients else None

    def _join(self, own: int, moments: Tensor) -> Tensor:
        """The moments of all processes; one collective, which also tells how many rows each has."""
        everyone = collective.gather(torch.cat([moments.new_tensor([own]), moments.flatten()]), self.group)
        self.counts = [int(count) for count in everyone[:, 0].tolist()]
        collective.check_rows(sum(self.counts))
        start = sum(self.counts[: collective.rank(self.group)])
        self.mine = slice(start, start + own)
        return merge(everyone[:, 0], everyone[:, 1:].view(-1, *moments.shape))

    def result(self) -> Result:
        total, rank = self._barlow() if self.settings.form == BARLOW else self._vicreg()
        return Result(total.float(), self.deviation.float(), rank.float(), self.out)

    # ---- what all losses use ----------------------------------------------------------------------------------

    def _gathered(self) -> Views:
        """The rows of all processes where the Gram form needs them."""
        if self.group is None or not self.gram:
            return self.views
        return collective.gather_rows(self.views, self.group, self.counts)[0]

    def _sum(self, value: Tensor) -> Tensor:
        return value if self.group is None else collective.total(value, self.group)

    def _held(self, view: int) -> Tensor | None:
        """The gradient's own memory where it can hold an operand until its product is there."""
        if self.out is None or self.group is not None or self.out[view].dtype != torch.float32:
            return None
        return self.out[view]

    def _product_room(self, view: int) -> Tensor:
        """float32 [rows, D]: the gradient's own memory where it is of that type."""
        assert self.out is not None
        out = self.out[view]
        return out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)

    def _side(
        self,
        view: int,
        of_product: Tensor,
        of_own: Tensor,
        of_other: Tensor | None = None,
        of_diagonal: Tensor | None = None,
        distance: float = 0.0,
        answer: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> "_Side":
        nothing, other = torch.zeros_like(of_own), min(1 - view, len(self.views) - 1)
        rows = [of_product, of_own, of_other, of_diagonal, self.means[view], self.means[other]]
        coefficients = torch.stack([nothing if row is None else row for row in rows])
        both = of_other is not None or distance != 0.0
        return _Side(view, coefficients, (view, other) if both else (view,), distance, answer, scale)

    def _finish(self, sides: Sequence["_Side"], products: Sequence[Products]) -> None:
        """The gradients of the sides' views; their products come in step, as each may free the operand of another."""
        assert self.out is not None
        for parts in zip(*products, strict=True):
            for side, (rows, columns, product) in zip(sides, parts, strict=True):
                coefficients = side.coefficients[:, columns]
                if side.answer is not None:
                    assert product is not None
                    own = Operand(self.views[side.view], self.means[side.view], side.scale)
                    own = own.columns(columns.start, columns.stop)
                    dots = self._sum(self.passes.column_dots(product, own))
                    coefficients[1] += side.answer[columns] * dots
                chosen = tuple(self.views[i][rows, columns] for i in side.views)
                out = self.out[side.view][rows, columns]
                self.passes.finish(product, chosen, coefficients, side.distance, out)

    # ---- VICReg -----------------------------------------------------------------------------------------------

    def _vicreg(self) -> tuple[Tensor, Tensor]:
        settings, rows, features = self.settings, self.rows, self.features
        smoothed = (self.squares / (rows - 1) + settings.eps).sqrt()  # [views, D]
        total, hinge = (
            torch.zeros((), dtype=torch.float64, device=smoothed.device),
            torch.zeros_like(smoothed),
        )
        if settings.variance:
            total = total + settings.variance * torch.relu(1.0 - smoothed).mean(dim=1).sum()
            slope = -settings.variance / (features * (rows - 1) * smoothed)
            hinge = torch.where(smoothed < 1.0, slope, hinge)
        distance = 0.0
        if self.distance_sum is not None and settings.invariance:
            distance = 2.0 * settings.invariance / (rows * features)
            total = total + settings.invariance * self.distance_sum / (rows * features)
        ranks = torch.full((len(self.views),), torch.nan, dtype=torch.float64, device=total.device)
        scale = settings.covariance / (float(rows - 1) ** 2 * max(settings.covariance_divisor(features), 1))
        everyone = self._gathered() if settings.covariance else self.views
        for view in range(len(self.views)):
            products: Products | None = None
            skipped = True
            if settings.covariance:
                pairs, squared, products, skipped = self._squared_covariances(view, everyone[view])
                total = total + scale * pairs
                ranks[view] = self.squares[view].sum().square() / squared
            if self.out is not None:
                factor = torch.full_like(hinge[view], 4.0 * scale)
                of_own = hinge[view] if skipped else hinge[view] - factor * self.squares[view]
                side = self._side(view, factor, of_own, of_diagonal=factor, distance=distance)
                everything = [Part(slice(0, len(self.out[view])), slice(0, features), None)]
                self._finish([side], [everything if products is None else products])
        return total, ranks

    def _squared_covariances(
        self, view: int, everyone: Tensor
    ) -> tuple[Tensor, Tensor, Products | None, bool]:
        """For S = Zc'Zc: (sum over i != j of S_ij^2, over all i and j, Zc S, whether S was without its diagonal)."""
        passes, diagonal, wanted = self.passes, self.squares[view], self.out is not None
        x = Operand(everyone, self.means[view], None)
        if not self.gram:
            room = self._product_room(view) if wanted else None
            pairs, products = forms.tiled_square(passes, x, room, self.group)
            return pairs, pairs + diagonal.square().sum(), products, True
        held = self._held(view)
        matrix = forms.gram_matrix(passes, x, None if self.group is None else self.mine, held)
        squared = self._sum(forms.gram_dot(passes, matrix, matrix))
        pairs = squared - diagonal.square().sum()
        if bool(diagonal.max() * diagonal.sum() > MOST_CANCELLATION * pairs):
            exact = forms.exact_gram_matrix(x, self.mine)
            squared = self._sum(exact.square().sum())
            # the moments are sums of float32: the diagonal that belongs to these products is their own
            diagonal = forms.exact_column_dots(x, x)
            pairs = squared - diagonal.square().sum()
            if not wanted:
                return pairs, squared, None, True
            room = self._product_room(view)
            forms.exact_gram_product(exact, x, x, diagonal, self.mine, room)
            return pairs, squared, forms.whole(room), True
        return pairs, squared, self._products(matrix, x, held) if wanted else None, False

    def _products(self, matrix: forms.Gram, x: Operand, held: Tensor | None) -> Products:
        return forms.gram_products(self.passes, matrix, x, self.mine, held, at_once=self.group is not None)

    # ---- Barlow Twins -----------------------------------------------------------------------------------------

    def _barlow(self) -> tuple[Tensor, Tensor]:
        settings, rows = self.settings, self.rows
        assert self.product_sum is not None
        if settings.unbiased:
            scales = 1.0 / (self.deviation + settings.eps)
            # how the normalised feature answers to its own size; a constant feature does not
            answer = torch.where(self.deviation > 0, 1.0 / ((rows - 1) * self.deviation), 0.0)
        else:
            scales = 1.0 / (self.squares / rows + settings.eps).sqrt()
            answer = scales / rows
        diagonal = scales[0] * scales[1] * self.product_sum / rows
        on_diagonal = (diagonal - 1.0).square().sum()
        correlations = self._gram_correlations if self.gram else self._tiled_correlations
        pairs = correlations(scales, answer, diagonal, on_diagonal)
        total = settings.covariance * (on_diagonal + settings.off_diagonal * pairs)
        rank = diagonal.sum().square() / (pairs + diagonal.square().sum())
        return total, rank.unsqueeze(0)

    @property
    def _of_products(self) -> float:
        """What the gradient of the normalised views has of N (Y C', X C) without the diagonal."""
        return 2.0 * self.settings.off_diagonal * self.settings.covariance / self.rows**2

    def _tiled_correlations(self, scales: Tensor, answer: Tensor, diagonal: Tensor, _: Tensor) -> Tensor:
        """The sum over i != j of C_ij^2. Forms the gradients."""
        x, y = (Operand(self.views[i], self.means[i], scales[i]) for i in (0, 1))
        room = None if self.out is None else (self._product_room(0), self._product_room(1))
        slope = 2.0 * self.settings.covariance * (diagonal - 1.0)
        factor = self._of_products
        dots, products = forms.tiled_pair(self.passes, x, y, factor, slope / self.rows, room, self.group)
        along = factor * dots + slope * diagonal  # of the slope and the normalised feature, over rows
        of_own = -answer * along * scales
        if products:
            self._finish([self._side(view, scales[view], of_own[view]) for view in (0, 1)], products)
        return dots[0].sum() / self.rows**2

    def _gram_correlations(
        self, scales: Tensor, answer: Tensor, diagonal: Tensor, on_diagonal: Tensor
    ) -> Tensor:
        """The sum over i != j of C_ij^2. Forms the gradients."""
        passes, weight, rows, mine = self.passes, self.settings.off_diagonal, self.rows, self.mine
        operands = [Operand(*it) for it in zip(self._gathered(), self.means, scales, strict=True)]
        held = [self._held(view) for view in (0, 1)]
        matrices = [
            forms.gram_matrix(passes, x, None if self.group is None else mine, room)
            for x, room in zip(operands, held, strict=True)
        ]
        squared = self._sum(forms.gram_dot(passes, *matrices)) / rows**2
        pairs = squared - diagonal.square().sum()
        products: list[Products]
        if bool(weight * squared > MOST_CANCELLATION * (on_diagonal + weight * pairs)):
            exact = [forms.exact_gram_matrix(x, mine) for x in operands]
            own = forms.exact_column_dots(*operands)
            pairs = (self._sum((exact[0] * exact[1]).sum()) - own.square().sum()) / rows**2
            slope = 2.0 * self.settings.covariance * (diagonal - 1.0)
            products = []
            for view in (0, 1) if self.out is not None else ():
                room, x, y = self._product_room(view), operands[view], operands[1 - view]
                forms.exact_gram_product(exact[1 - view], x, y, own, mine, room)
                products.append(forms.whole(room))
        else:
            slope = 2.0 * self.settings.covariance * (diagonal - 1.0 - weight * diagonal)
            products = [
                self._products(matrices[1 - view], operands[view], held[view])
                for view in ((0, 1) if self.out is not None else ())
            ]
        factor = self._of_products
        sides = [
            self._side(
                view,
                own * factor,
                -answer[view] * own * slope * diagonal,
                of_other=own * slope * other / rows,
                of_diagonal=own.square() * factor,
                answer=-answer[view] * own.square() * factor,
                scale=own,
            )
            for view, (own, other) in enumerate(zip(scales, scales.flip(0), strict=True))
        ]
        if products:
            self._finish(sides, products)
        return pairs
