"""Figures of the report on records: speed, memory, roofline, history."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jepa_fast.bench.measure import Record, Row
from jepa_fast.bench.measure.ceilings import Ceilings
from jepa_fast.bench.report.columns import three_digits
from jepa_fast.bench.report.figures import EAGER, OURS, STYLE, bars, svg

SHADES = ("#1a56db", "#d9480f", "#2b8a3e", "#ae3ec9", "#e0a800", "#0b7285", "#c2255c", "#5f3dc4", "#495057")
VERDICTS = {"faster": OURS, "slower": "#d9480f", "same": EAGER, "cannot tell": "#c3c9d4"}
LEAST_RECORDS = 2  # for a line over time


def label(row: Row) -> str:
    """What a bar is of; the shape is in the table."""
    shape = row.shape if len(row.shape) <= 46 else f"{row.shape[:45]}..."
    return f"{row.op}, {row.dtype}, vs {row.baseline}\n{shape}"


def speed(rows: Sequence[Row]) -> str:
    """Times faster than the baseline on a logarithmic axis, with the interval, coloured by the verdict."""
    rows = [row for row in rows if row.ratio and row.ratio_low and row.ratio_high]
    with mpl.rc_context(STYLE):
        figure, axes = bars([label(row) for row in rows])
        for place, row in enumerate(rows):
            ratio, low, high = row.ratio or 1.0, row.ratio_low or 1.0, row.ratio_high or 1.0
            axes.barh(place, ratio - 1, left=1, height=0.55, color=VERDICTS.get(row.verdict or "", EAGER))
            axes.plot((low, high), (place, place), color="#20293a", linewidth=1.2)
            axes.annotate(
                f"{ratio:.2f}x",
                (max(high, 1.0), place),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.axvline(1, color="#20293a", linewidth=1, linestyle=":")
        lowest = min([row.ratio_low or 1.0 for row in rows] + [0.9])
        highest = max([row.ratio_high or 1.0 for row in rows] + [1.1])
        axes.set(xscale="log", xlim=(lowest * 0.9, highest * 1.6), xlabel="times faster than the baseline")
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if lowest * 0.9 <= t <= highest * 1.6]
        axes.set_xticks(ticks, [f"{t:g}x" for t in ticks])
        axes.minorticks_off()
        return svg(figure)


def memory(rows: Sequence[Row]) -> str:
    """Peak extra memory of one call, both sides, on a logarithmic axis: ops differ by orders of magnitude."""
    rows = [row for row in rows if row.peak_bytes is not None and row.baseline_peak_bytes]
    least = 2**-6  # MiB; where nothing at all is drawn
    with mpl.rc_context(STYLE):
        figure, axes = bars([label(row) for row in rows])
        for offset, color, name, sizes in (
            (-0.2, EAGER, "baseline", [row.baseline_peak_bytes or 0 for row in rows]),
            (0.2, OURS, "jepa_fast", [row.peak_bytes or 0 for row in rows]),
        ):
            places = np.arange(len(rows)) + offset
            widths = [max(size / 2**20, least) for size in sizes]
            axes.barh(places, widths, height=0.36, color=color, label=name)
            for place, width, size in zip(places, widths, sizes, strict=True):
                text = (
                    three_digits(size / 2**20) if size >= least * 2**20 else f"{size} bytes" if size else "0"
                )
                axes.annotate(
                    text, (width, place), (5, 0), textcoords="offset points", va="center", fontsize=8
                )
        axes.set(xscale="log", xlabel="peak extra memory of one call, MiB")
        axes.set_xlim(least / 2, axes.get_xlim()[1] * 2)
        axes.legend(loc="lower right")
        return svg(figure)


def roofline(rows: Sequence[Row], ceilings: Ceilings) -> str:
    """Operations a second over operations for each byte, under what a copy and a product reach here."""
    points = [row for row in _first_of_each_case(rows) if row.flops and row.bytes and row.time]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5.2), layout="constrained")
        axes = figure.subplots()
        intensities = [(row.flops or 0) / (row.bytes or 1) for row in points]
        x = np.geomspace(min([*intensities, 0.1]) / 3, max([*intensities, 100.0]) * 3, 200)
        for (name, tflops), style in zip(ceilings.matmul_tflops.items(), ("-", "--", ":"), strict=False):
            roof = np.minimum(x * ceilings.copy_gbs, tflops * 1e3)
            axes.plot(x, roof, style, color="#5b6474", linewidth=1.3)
            axes.annotate(
                f"{name} product: {three_digits(tflops * 1e3)} GFLOP/s",
                (x[-1], tflops * 1e3),
                (0, 4),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color="#5b6474",
            )
        axes.annotate(
            f"copy: {three_digits(ceilings.copy_gbs)} GB/s",
            (x[4], x[4] * ceilings.copy_gbs),
            (4, -2),
            textcoords="offset points",
            rotation=0,
            va="top",
            fontsize=8,
            color="#5b6474",
        )
        ops = list(dict.fromkeys(row.op for row in points))
        for row, intensity in zip(points, intensities, strict=True):
            reached = (row.flops or 0) / row.time.median / 1e9 if row.time else 0.0
            shade = SHADES[ops.index(row.op) % len(SHADES)]
            marker = "s" if "bfloat16" in row.dtype else "o"
            axes.plot(intensity, reached, marker, color=shade, markersize=7, alpha=0.85)
        handles = [
            axes.plot([], [], "o", color=SHADES[i % len(SHADES)], label=op)[0] for i, op in enumerate(ops)
        ]
        axes.legend(handles=handles, loc="lower right", fontsize=8)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="operations for each byte that has to move (circles float32, squares bfloat16)",
            ylabel="GFLOP/s",
        )
        axes.grid(which="major")
        return svg(figure)


def history(records: Sequence[Record]) -> str | None:
    """The ratio of each case over the records of one machine, oldest first; None if no case has two."""
    lines: dict[tuple[str, ...], list[tuple[int, float, float, float]]] = {}
    ordered = sorted(records, key=lambda record: record.created)
    for number, record in enumerate(ordered):
        for row in record.rows:
            if row.ratio and row.ratio_low and row.ratio_high:
                key = (row.suite, row.op, row.shape, row.dtype, row.baseline)
                lines.setdefault(key, []).append((number, row.ratio, row.ratio_low, row.ratio_high))
    kept = {key: points for key, points in lines.items() if len(points) >= LEAST_RECORDS}
    if not kept:
        return None
    suites = list(dict.fromkeys(key[0] for key in kept))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.3 * len(suites)), layout="constrained")
        for axes, suite in zip(np.ravel(figure.subplots(len(suites), 1, squeeze=False)), suites, strict=True):
            own: Mapping[tuple[str, ...], list[tuple[int, float, float, float]]] = {
                key: points for key, points in kept.items() if key[0] == suite
            }
            for shade, (case, points) in zip(SHADES * len(own), own.items(), strict=False):
                x, y, low, high = (np.array(column) for column in zip(*points, strict=True))
                name = f"{case[1]}, {case[3]}, vs {case[4]}"
                axes.plot(x, y, "o-", color=shade, label=name, markersize=4, linewidth=1.2)
                axes.fill_between(x, low, high, color=shade, alpha=0.15, linewidth=0)
            axes.set(title=suite, ylabel="times faster")
            axes.set_ylim(bottom=0)
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
            axes.set_xticks(range(len(ordered)), [_moment(record) for record in ordered], fontsize=7)
            axes.grid(axis="y")
        return svg(figure)


def _moment(record: Record) -> str:
    commit = (record.machine.git_commit or "no commit")[:8]
    return f"{record.created:%m-%d %H:%M}\n{commit}{'+' if record.machine.git_dirty else ''}"


def _first_of_each_case(rows: Sequence[Row]) -> list[Row]:
    """Our own time is the same against every baseline."""
    firsts: dict[tuple[str, ...], Row] = {}
    for row in rows:
        firsts.setdefault((row.suite, row.op, row.shape, row.dtype), row)
    return list(firsts.values())
