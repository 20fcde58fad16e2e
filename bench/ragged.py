"""Masks that keep all their tokens against masks that are cut to the shortest of the batch: two runs side by side.

    python -m jepa_fast.bench.ragged docs/configs/clips_vjepa2.toml --steps 200

Both begin with the same weights and see the same crops and the same draws of masks. Their steps are taken in turn, so a
disturbance of the machine meets both. Each loss is one of the run's own tokens; beside it stands the loss on samples
that neither has seen, with all tokens of their masks. Either way predictions are compared with the run's own teacher.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from jepa_fast.bench.report.figures import EAGER, OURS, STYLE
from jepa_fast.bench.report.terminal import make_console
from jepa_fast.bench.report.training import smooth
from jepa_fast.data import Source, StepBatches
from jepa_fast.probes.run import split_indices
from jepa_fast.training import schedules, setup
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.config_file import read_config
from jepa_fast.training.step import Step
from jepa_fast.training.systems import System, make_system

FORMS = {"cut": False, "ragged": True}
COLOURS = {"cut": EAGER, "ragged": OURS}
HELD_OUT_BATCHES = 2


@dataclass
class Curve:
    """One run. losses, tokens, seconds: of each step. held_out: loss on all tokens of unseen samples, by step.

    tokens: of contexts and targets; the teacher embeds all patches of every sample besides, in both forms.
    """

    losses: list[float] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)

    @property
    def used(self) -> float:
        """Tokens of a step, on average."""
        return statistics.fmean(map(sum, self.tokens))


def train_both(config: TrainConfig, steps: int, *, every: int = 20) -> dict[str, Curve]:
    """Trains `steps` steps in each form; looks at the samples kept out every so many steps.

    The schedules are those of a run of `steps` steps. Raises ValueError for a system without masks.
    """
    config = replace(
        config, steps=steps, warmup_steps=min(steps, config.warmup_steps or steps // 8), epochs=1
    )
    device = setup.choose_device(config.device)
    precision = setup.choose_precision(config.precision, device)
    systems: dict[str, System] = {}
    runs: dict[str, Step] = {}
    for name, ragged in FORMS.items():
        torch.manual_seed(config.seed)
        systems[name] = make_system(replace(config, ragged=ragged))
        if systems[name].sampler is None:
            raise ValueError(f"model: expected a system with masks, got {config.model}")
        runs[name] = systems[name].step(systems[name].model.to(device), precision=precision)
    source = setup.open_data(config, systems["cut"])
    train, _, test = split_indices(source, config.seed)
    plan = setup.make_plan(config, system=systems["cut"], samples=len(train))
    batches = {name: _batches(config, source, system, train) for name, system in systems.items()}
    unseen = _batches(config, source, systems["ragged"], test)
    kept_out = [_inputs(systems["ragged"], unseen[number], device) for number in range(HELD_OUT_BATCHES)]
    curves = {name: Curve() for name in FORMS}
    for number in range(steps):
        if number % every == 0:
            _look(runs, curves, kept_out, number)
        rates = schedules.rates(number, plan)
        for name in FORMS if number % 2 else reversed(FORMS):
            pixels, masks = _inputs(systems[name], batches[name][number], device)
            begin = time.perf_counter()
            loss = runs[name].step(pixels, masks, **rates).item()  # waits for the device
            curves[name].seconds.append(time.perf_counter() - begin)
            curves[name].losses.append(loss)
            curves[name].tokens.append(_count(masks))
    _look(runs, curves, kept_out, steps)
    return curves


def _batches(config: TrainConfig, source: Source, system: System, subset: Sequence[int]) -> StepBatches:
    size = min(config.batch_size, len(subset))
    return StepBatches(source, size, system.kinds, seed=config.seed, sampler=system.sampler, subset=subset)


def _inputs(system: System, raw: Any, device: torch.device) -> tuple[Any, Any]:
    moved = raw.to(device)
    return system.arrange(moved.views(system.kinds)), moved.masks


@torch.no_grad()
def _look(
    runs: dict[str, Step], curves: dict[str, Curve], batches: list[tuple[Any, Any]], number: int
) -> None:
    for name, run in runs.items():
        losses = [run.loss(pixels, masks).item() for pixels, masks in batches]
        curves[name].held_out[number] = statistics.fmean(losses)


def _count(masks: Any) -> tuple[int, int]:
    """Context and target tokens of a batch, all mask sets together."""
    parts = [masks] if hasattr(masks, "context") else masks
    contexts, targets = zip(*(part.token_counts for part in parts), strict=True)
    return sum(contexts), sum(targets)


def table(curves: dict[str, Curve], batch_size: int) -> Table:
    out = Table("", *curves, "ragged / cut")
    cut, ragged = curves["cut"], curves["ragged"]

    def add(name: str, values: Sequence[float], form: str) -> None:
        out.add_row(name, *(format(value, form) for value in values), f"{values[1] / values[0]:.3f}")

    for place, part in enumerate(("context", "target")):
        means = [
            statistics.fmean(pair[place] for pair in curve.tokens) / batch_size for curve in (cut, ragged)
        ]
        add(f"{part} tokens of a sample", means, ".1f")
    seconds = [statistics.median(curve.seconds) for curve in (cut, ragged)]
    add("milliseconds of a step, median", [1e3 * value for value in seconds], ".0f")
    pairs = [b / a for a, b in zip(cut.seconds, ragged.seconds, strict=True)]
    out.add_row("the same, median of the pairs", "", "", f"{statistics.median(pairs):.3f}")
    per_token = [1e6 * value / curve.used for value, curve in zip(seconds, (cut, ragged), strict=True)]
    add("microseconds of a token", per_token, ".1f")
    tail = len(cut.losses) // 10 or 1
    add(
        "loss on its own tokens, last tenth",
        [statistics.fmean(c.losses[-tail:]) for c in (cut, ragged)],
        ".4f",
    )
    add("loss on all tokens of unseen samples", [list(c.held_out.values())[-1] for c in (cut, ragged)], ".4f")
    return out


def draw(curves: dict[str, Curve], title: str) -> Figure:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        own, common = figure.subplots(1, 2)
        for name, curve in curves.items():
            steps = range(1, len(curve.losses) + 1)
            own.plot(steps, curve.losses, color=COLOURS[name], linewidth=0.6, alpha=0.35)
            own.plot(steps, list(smooth(curve.losses)), color=COLOURS[name], label=name)
            common.plot(*zip(*curve.held_out.items(), strict=True), "o-", color=COLOURS[name], label=name)
        _label(own, f"{title}: loss on its own tokens")
        _label(common, "loss on all tokens of unseen samples")
        return figure


def _label(axes: Axes, title: str) -> None:
    axes.set(title=title, xlabel="step")
    axes.grid(axis="y")
    axes.legend(loc="upper right")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ragged masks against cut ones: tokens, time, loss.")
    parser.add_argument("config", type=Path, help="of `jepa-fast train`")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="steps between two looks at unseen samples")
    parser.add_argument("--output", type=Path, default=Path("docs/ragged_training.png"))
    options = parser.parse_args(arguments)
    config = read_config(options.config, TrainConfig)
    curves = train_both(config, options.steps, every=options.every)
    make_console().print(table(curves, config.batch_size))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(curves, f"{config.model.partition('_')[0]}, B={config.batch_size}").savefig(options.output, dpi=160)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
