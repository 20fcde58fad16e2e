"""Figures of the HTML report, each as a data URI, so that the report is one file."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from jepa_fast.bench.measure import Row
from jepa_fast.bench.measure.agreement import Agreement
from jepa_fast.bench.report.columns import memory

OURS, EAGER, BUDGET = "#1a56db", "#9aa3b2", "#f2b8a0"
TARGETS = ("#d9480f", "#2b8a3e", "#ae3ec9", "#e0a800")  # outlines of the target blocks
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c3c9d4",
    "axes.labelcolor": "#3c4454",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.color": "#5b6474",
    "ytick.color": "#5b6474",
    "grid.color": "#e8ebf0",
    "legend.frameon": False,
}


def loss_curves(name: str, eager: Sequence[float], ours: Sequence[float], found: Agreement) -> str:
    """Left the two curves, right their distance under its budget."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.9), layout="constrained")
        curves, distances = figure.subplots(1, 2)
        steps = range(1, len(eager) + 1)
        curves.plot(steps, eager, color=EAGER, linewidth=5, alpha=0.7, label="published eager")
        curves.plot(steps, ours, color=OURS, linewidth=1.4, label="jepa_fast")
        curves.set(title=f"loss, {name}", xlabel="training step")
        curves.legend()
        tiny = torch.finfo(torch.float32).eps / 8  # where a distance of exactly zero is drawn
        distances.fill_between(
            steps, tiny, found.budget, color=BUDGET, alpha=0.45, linewidth=0, label="budget"
        )
        distances.plot(steps, np.maximum(found.peer, tiny), color=EAGER, linewidth=1.4, label="yardstick")
        distances.plot(steps, np.maximum(found.ours, tiny), color=OURS, linewidth=1.4, label="jepa_fast")
        distances.set(title="relative difference of the loss", xlabel="training step", yscale="log")
        distances.set_ylim(tiny, 30 * max(found.budget))
        distances.legend(loc="upper right", ncols=3)
        for axes in (curves, distances):
            axes.grid(axis="y")
        return svg(figure)


def speed_bars(rows: Sequence[Row]) -> str:
    """Times faster than the baseline, with the confidence interval as a whisker."""
    rows = [row for row in rows if row.ratio is not None]
    with mpl.rc_context(STYLE):
        figure, axes = bars([_label(row) for row in rows])
        places = range(len(rows))
        ratios = [row.ratio or math.nan for row in rows]
        below = [(row.ratio or 0) - (row.ratio_low or 0) for row in rows]
        above = [(row.ratio_high or 0) - (row.ratio or 0) for row in rows]
        axes.barh(places, ratios, height=0.55, color=OURS)
        axes.errorbar(
            ratios, places, xerr=[below, above], fmt="none", ecolor="#20293a", capsize=3, linewidth=1
        )
        axes.axvline(1, color="#20293a", linewidth=1, linestyle=":")
        for place, row in zip(places, rows, strict=True):
            axes.annotate(
                f"{row.ratio:.2f}x",
                (row.ratio_high or 0, place),
                (6, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set(
            xlabel="times faster than the baseline", xlim=(0, max(row.ratio_high or 0 for row in rows) * 1.12)
        )
        return svg(figure)


def memory_bars(rows: Sequence[Row]) -> str:
    """Peak extra memory of one call, ours and the baseline's."""
    rows = [row for row in rows if row.peak_bytes is not None and row.baseline_peak_bytes]
    with mpl.rc_context(STYLE):
        figure, axes = bars([_label(row) for row in rows])
        for offset, color, label, sizes in (
            (-0.2, EAGER, "baseline", [row.baseline_peak_bytes or 0 for row in rows]),
            (0.2, OURS, "jepa_fast", [row.peak_bytes or 0 for row in rows]),
        ):
            places = [place + offset for place in range(len(rows))]
            axes.barh(places, [size / 2**20 for size in sizes], height=0.36, color=color, label=label)
            for place, size in zip(places, sizes, strict=True):
                axes.annotate(
                    memory(size),
                    (size / 2**20, place),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        axes.set(xlabel="peak extra memory of one call, MiB")
        axes.margins(x=0.15)
        axes.legend(loc="lower right")
        return svg(figure)


def masked_frames(
    frames: Tensor, contexts: Sequence[Tensor], targets: Sequence[Sequence[Tensor]], patch: int
) -> str:
    """Per frame a column: the frame with its target blocks outlined, and what the context encoder sees.

    frames uint8 [n, 3, H, W]. contexts: per frame the visible patches. targets: per frame one tensor of
    patches for every block.
    """
    count, side = len(frames), frames.shape[-1] // patch
    figure = Figure(figsize=(1.6 * count, 3.3), layout="constrained")
    rows = figure.subplots(2, count, squeeze=False)
    for column, (frame, context, blocks) in enumerate(zip(frames, contexts, targets, strict=True)):
        image = frame.permute(1, 2, 0).numpy()
        visible = torch.zeros(side * side, dtype=torch.bool)
        visible[context] = True
        shown = visible.view(side, side).repeat_interleave(patch, 0).repeat_interleave(patch, 1).numpy()
        _picture(rows[0][column], image)
        _picture(rows[1][column], np.where(shown[..., None], image, 236).astype(np.uint8))
        for block, color in zip(blocks, TARGETS, strict=False):
            _outline(rows[0][column], block, side, patch, color)
    rows[0][0].set_ylabel("targets", color="#3c4454")
    rows[1][0].set_ylabel("context", color="#3c4454")
    return _png(figure)


def feature_maps(frames: Tensor, colors: Tensor) -> str:
    """Per frame a column: the frame, and its patch features as colours. frames uint8 [n, 3, H, W], colors [n,
    h, w, 3]."""
    figure = Figure(figsize=(1.6 * len(frames), 3.3), layout="constrained")
    rows = figure.subplots(2, len(frames), squeeze=False)
    for column, (frame, color) in enumerate(zip(frames, colors, strict=True)):
        _picture(rows[0][column], frame.permute(1, 2, 0).numpy())
        _picture(rows[1][column], color.numpy())
    rows[0][0].set_ylabel("frame", color="#3c4454")
    rows[1][0].set_ylabel("features", color="#3c4454")
    return _png(figure)


def principal_colors(features: Tensor) -> Tensor:
    """The first three principal components of patch features [n, N, D] as colours in [0, 1], [n, side, side,
    3].

    The mean feature of each position over the frames is taken away first: otherwise the components show where
    a patch is, which every vision transformer encodes, instead of what it shows.
    """
    count, patches, dim = features.shape
    side = math.isqrt(patches)
    centred = (features - features.mean(dim=0)).reshape(-1, dim).double()
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    components = centred @ axes[:3].T
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    return ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).view(count, side, side, 3)


def _label(row: Row) -> str:
    return f"{row.op}, {row.dtype}\nagainst {row.baseline}"


def bars(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """An empty chart with one labelled place for each horizontal bar, from the top down."""
    figure = Figure(figsize=(9.6, 0.7 + 0.5 * len(labels)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _outline(axes: Axes, block: Tensor, side: int, patch: int, color: str) -> None:
    """The rectangle round a block of patches."""
    top, left = int(block.min()) // side, int((block % side).min())
    bottom, right = int(block.max()) // side, int((block % side).max())
    size = ((right - left + 1) * patch, (bottom - top + 1) * patch)
    axes.add_patch(
        Rectangle((left * patch - 0.5, top * patch - 0.5), *size, fill=False, edgecolor=color, linewidth=2)
    )


def _picture(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def svg(figure: Figure) -> str:
    """As a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
