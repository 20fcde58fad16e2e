"""How the cost of the covariance losses grows with N and D, beside the published order: a figure.

python -m jepa_fast.bench.report.scaling --output docs/covariance_scaling.png
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jepa_fast.bench.measure import compare
from jepa_fast.bench.report.figures import EAGER, OURS, STYLE
from jepa_fast.bench.suites.covariance import LOSSES, tensors, with_gradients

LOSS = "vicreg_loss"
ROWS, FEATURES = 512, 512  # kept while the other grows
SIZES = (64, 128, 256, 512, 1024, 2048, 4096)


class Point(NamedTuple):
    """Medians of one shape, in seconds of one forward and backward pass."""

    rows: int
    features: int
    ours: float
    eager: float


def measure(shapes: Sequence[tuple[int, int]], device: torch.device, budget_s: float) -> list[Point]:
    """Ours and the published loss, call by call in turn, at each (N, D)."""
    ours, eager = LOSSES[LOSS]
    points = []
    for rows, features in shapes:
        views = tensors((rows, features), torch.float32, device)
        found = compare(
            lambda views=views: with_gradients(ours, views),
            lambda views=views: with_gradients(eager, views),
            budget_s=budget_s,
            device=device,
        )
        points.append(Point(rows, features, found.median_a, found.median_b))
    return points


def operations(rows: int, features: int) -> float:
    """Multiplications and additions of the products of two views: the smaller of the two forms.

    Half of a symmetric matrix, and its product with a view: N D min(N, D) + 2 N D min(N, D) for each view.
    """
    return 2.0 * 3.0 * rows * features * min(rows, features)


def draw(by_features: Sequence[Point], by_rows: Sequence[Point]) -> Figure:
    """Left the cost over D, right over N; the dotted line is where the form changes, the thin ones the theory."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _panel(left, by_features, [p.features for p in by_features], ROWS, "features D", f"N = {ROWS}")
        _panel(right, by_rows, [p.rows for p in by_rows], FEATURES, "rows N", f"D = {FEATURES}")
        left.set_ylabel("milliseconds, forward and backward")
        left.legend(loc="upper left")
        return figure


def _panel(
    axes: Axes, points: Sequence[Point], sizes: Sequence[int], crossover: int, label: str, title: str
) -> None:
    axes.plot(sizes, [1e3 * p.eager for p in points], "o-", color=EAGER, label="published eager")
    axes.plot(sizes, [1e3 * p.ours for p in points], "o-", color=OURS, label="jepa_fast")
    # Through the largest shape, where the products outweigh all else.
    for color, values, cost in (
        (OURS, [p.ours for p in points], [operations(p.rows, p.features) for p in points]),
        (EAGER, [p.eager for p in points], [12.0 * p.rows * p.features**2 for p in points]),
    ):
        axes.plot(
            sizes, [1e3 * values[-1] * c / cost[-1] for c in cost], color=color, linewidth=0.8, linestyle="--"
        )
    axes.axvline(crossover, color="#20293a", linewidth=1, linestyle=":")
    axes.annotate(
        "N = D", (crossover, 0.02), (4, 0), xycoords=("data", "axes fraction"), textcoords="offset points"
    )
    axes.set(xscale="log", yscale="log", xlabel=label, title=f"VICReg, {title}")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(axis="y")


def table(points: Sequence[Point]) -> str:
    """One line per shape, for the terminal."""
    lines = [f"{'N':>6}{'D':>7}{'jepa_fast ms':>14}{'eager ms':>11}{'ratio':>8}"]
    for p in points:
        ratio = p.eager / p.ours if p.ours else math.nan
        lines.append(f"{p.rows:>6}{p.features:>7}{1e3 * p.ours:>14.2f}{1e3 * p.eager:>11.2f}{ratio:>8.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Cost of VICReg over N and D, as a figure.")
    parser.add_argument("--output", type=Path, default=Path("docs/covariance_scaling.png"))
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="largest N and D")
    options = parser.parse_args(arguments)
    sizes = [size for size in SIZES if size <= options.most]
    device = torch.device(options.device)
    by_features = measure([(ROWS, size) for size in sizes], device, options.budget)
    by_rows = measure([(size, FEATURES) for size in sizes], device, options.budget)
    print(table([*by_features, *by_rows]))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(by_features, by_rows).savefig(options.output, dpi=160)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
