"""The covariance losses and their gradients out of few passes: statistics, products, one pass for the gradients.

In single precision. Whatever the group, every process arrives at the same bits of the loss and of what is decided.
The derivation is in README.md.
"""

import torch
from torch import Tensor

from ..runtime import collective
from . import forms
from .forms import Operand, Passes
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

    def _product_room(self, view: int) -> Tensor:
        """float32 [rows, D]: the gradient's own memory where it is of that type."""
        assert self.out is not None
        out = self.out[view]
        return out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)

    def _finish(
        self,
        view: int,
        product: Tensor | None,
        of_product: Tensor,
        of_own: Tensor,
        of_other: Tensor | None,
        distance: float,
    ) -> None:
        assert self.out is not None
        pair = (view, 1 - view) if len(self.views) == 2 else (view,)
        other = torch.zeros_like(of_own) if of_other is None else of_other
        coefficients = torch.stack([of_product, of_own, other, *(self.means[i] for i in pair)])
        if len(pair) == 1:
            coefficients = torch.cat([coefficients, torch.zeros_like(of_own)[None]])
        if of_other is None and not distance:
            pair = (view,)
        chosen = tuple(self.views[i] for i in pair)
        self.passes.finish(product, chosen, coefficients, distance, self.out[view])

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
            product, skipped = None, True
            if settings.covariance:
                pairs, squared, product, skipped = self._squared_covariances(view, everyone[view])
                total = total + scale * pairs
                ranks[view] = self.squares[view].sum().square() / squared
            if self.out is not None:
                factor = torch.full_like(hinge[view], 4.0 * scale)
                of_own = hinge[view] if skipped else hinge[view] - 4.0 * scale * self.squares[view]
                self._finish(view, product, factor, of_own, None, distance)
        return total, ranks

    def _squared_covariances(self, view: int, everyone: Tensor) -> tuple[Tensor, Tensor, Tensor | None, bool]:
        """For S = Zc'Zc: (sum over i != j of S_ij^2, over all i and j, Zc S, whether S was without its diagonal)."""
        passes, diagonal = self.passes, self.squares[view]
        x = Operand(everyone, self.means[view], None)
        product = self._product_room(view) if self.out is not None else None
        if not self.gram:
            pairs = forms.tiled_square(passes, x, product, self.group)
            return pairs, pairs + diagonal.square().sum(), product, True
        mine = None if self.group is None else self.mine
        matrix = forms.gram_matrix(passes, x, mine, product if self.group is None else None)
        squared = self._sum(forms.gram_dot(passes, matrix, matrix))
        pairs = squared - diagonal.square().sum()
        if bool(diagonal.max() * diagonal.sum() > MOST_CANCELLATION * pairs):
            exact = forms.exact_gram_matrix(x, self.mine)
            squared = self._sum(exact.square().sum())
            # the moments are sums of float32: the diagonal that belongs to these products is their own
            diagonal = forms.exact_column_dots(x, x)
            pairs = squared - diagonal.square().sum()
            if product is not None:
                forms.exact_gram_product(exact, x, x, diagonal, self.mine, product)
            return pairs, squared, product, True
        if product is not None:
            forms.gram_product(passes, matrix, x, self.mine, product)
        return pairs, squared, product, False

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
        everyone = self._gathered()
        x, y = (Operand(everyone[i], self.means[i], scales[i]) for i in (0, 1))
        diagonal = scales[0] * scales[1] * self.product_sum / rows
        on_diagonal = (diagonal - 1.0).square().sum()
        pairs, products, dots, skipped = self._squared_correlations(x, y, diagonal, on_diagonal)
        total = settings.covariance * (on_diagonal + settings.off_diagonal * pairs)
        rank = diagonal.sum().square() / (pairs + diagonal.square().sum())
        if products is not None:
            of_products = 2.0 * settings.off_diagonal * settings.covariance / rows**2
            slope = diagonal - 1.0 if skipped else diagonal - 1.0 - settings.off_diagonal * diagonal
            slope = 2.0 * settings.covariance * slope
            if dots is None:
                parts = zip(products, self.views, self.means, strict=True)
                own = torch.stack([self.passes.column_dots(*part) for part in parts])
                dots = self._sum(own) * scales
            for view, dot in enumerate(dots):
                own, other = scales[view], scales[1 - view]
                along = (
                    of_products * dot + slope * diagonal
                )  # of the slope and the normalised feature, over rows
                of_own, of_other = -answer[view] * along * own, own * slope * other / rows
                self._finish(view, products[view], own * of_products, of_own, of_other, 0.0)
        return total, rank.unsqueeze(0)

    def _squared_correlations(
        self, x: Operand, y: Operand, diagonal: Tensor, on_diagonal: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor | None, bool]:
        """For C = X'Y/N: (sum over i != j of C_ij^2, N (Y C', X C), the sums over rows of those times (X, Y) if they
        are known, whether C was without its diagonal)."""
        passes, weight, rows = self.passes, self.settings.off_diagonal, self.rows
        room = (self._product_room(0), self._product_room(1)) if self.out is not None else None
        if not self.gram:
            squares = forms.tiled_pair(passes, x, y, room, self.group)
            return squares[0].sum() / rows**2, room, squares, True
        alone = self.group is None
        matrices = [
            forms.gram_matrix(
                passes, operand, None if alone else self.mine, room[i] if room is not None and alone else None
            )
            for i, operand in enumerate((x, y))
        ]
        squared = self._sum(forms.gram_dot(passes, *matrices)) / rows**2
        pairs = squared - diagonal.square().sum()
        if bool(weight * squared > MOST_CANCELLATION * (on_diagonal + weight * pairs)):
            exact = [forms.exact_gram_matrix(operand, self.mine) for operand in (x, y)]
            own = forms.exact_column_dots(x, y)
            pairs = (self._sum((exact[0] * exact[1]).sum()) - own.square().sum()) / rows**2
            if room is not None:
                forms.exact_gram_product(exact[1], x, y, own, self.mine, room[0])
                forms.exact_gram_product(exact[0], y, x, own, self.mine, room[1])
            return pairs, room, None, True
        if room is not None:
            forms.gram_product(passes, matrices[1], x, self.mine, room[0])
            forms.gram_product(passes, matrices[0], y, self.mine, room[1])
        return pairs, room, None, False
