"""The loss of runs of `jepa-fast train` over their steps: a figure with a panel for each.

python -m jepa_fast.bench.report.training runs/first runs/second --output losses.png
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from jepa_fast.bench.report.figures import OURS, STYLE
from jepa_fast.training.log import METRICS_NAME

SMOOTHED = 20  # steps of a running mean


def read_losses(run: Path) -> dict[int, float]:
    """Loss by step; steps that were left out are not there. Raises FileNotFoundError, ValueError without any."""
    rows = [json.loads(line) for line in (run / METRICS_NAME).read_text(encoding="utf-8").splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if row.get("loss") is not None}
    if not losses:
        raise ValueError(f"run: no losses in {run / METRICS_NAME}")
    return losses


def draw(runs: dict[str, dict[int, float]]) -> Figure:
    """runs: losses by step, by the title of their panel."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.8 * len(runs), 2.9), layout="constrained")
        panels = figure.subplots(1, len(runs), squeeze=False)[0]
        for axes, (name, losses) in zip(panels, runs.items(), strict=True):
            steps, values = list(losses), list(losses.values())
            axes.plot(steps, values, color=OURS, linewidth=0.6, alpha=0.35)
            axes.plot(steps, list(smooth(values)), color=OURS)
            axes.set(title=name, xlabel="step", ylabel="loss")
            axes.grid(axis="y")
        return figure


def smooth(losses: Sequence[float]) -> Iterator[float]:
    """Means of up to 20 steps: each with those before it."""
    for end in range(1, len(losses) + 1):
        yield statistics.fmean(losses[max(0, end - SMOOTHED) : end])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Losses of training runs, as a figure.")
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of `jepa-fast train`")
    parser.add_argument("--output", type=Path, default=Path("losses.png"))
    options = parser.parse_args(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw({run.name: read_losses(run) for run in options.runs}).savefig(options.output, dpi=120)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
