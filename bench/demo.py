"""The demonstration behind `make demo`: one I-JEPA trained the published eager way and the accelerated way.

Both start from the same weights and see the same real frames and masks. Their losses must agree step by step
within the budget of `measure/agreement.py`; one table and one self-contained HTML page say what was gained.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from jepa_fast import models
from jepa_fast.bench import suites
from jepa_fast.bench.baselines.ijepa import EagerIJEPAStep
from jepa_fast.bench.measure import Comparison, Row, fingerprint, peak_memory, run_case
from jepa_fast.bench.measure.agreement import agreement
from jepa_fast.bench.measure.training import Batch, Contestant, Hyperparameters, train_side_by_side
from jepa_fast.bench.report.demo_page import DemoResults, Pictures, Training, demo_page
from jepa_fast.bench.report.terminal import make_console, tables
from jepa_fast.data import EpochBatches, normalize, open_folder, sample_clips_folder
from jepa_fast.masks import MultiBlockMasks
from jepa_fast.models import IJEPA
from jepa_fast.training import schedules
from jepa_fast.training.config import PUBLISHED_WARMUP
from jepa_fast.training.loop import TrainingStep
from jepa_fast.training.setup import choose_device
from jepa_fast.training.step import IJEPAStep, Precision

SEED = 0
WARM_UP_STEPS = 2  # left out of the times: the first steps allocate the optimizer's state
LEAST_STEPS = WARM_UP_STEPS + 2  # what a ratio with an interval takes
TRAINING_BUDGET_S = 80.0  # for each precision: on a slow machine the training ends early
SHOWN_FRAMES = 6
FEATURE_BATCHES = 8  # whose mean feature at each position is taken away
OP_SUITES = ("ema", "latent_loss", "host_cost")


@dataclass(frozen=True)
class Demo:
    """Train I-JEPA on real frames, the published eager way and the accelerated way, and compare.

    Exit code: 0 if the loss curves agree within the numerics budget, 1 if they do not, 2 for bad usage.
    """

    output: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("report.html")
    """The report: one HTML file with nothing to load."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Images and videos to train on. Default: four sample clips that come from PyPI."""
    steps: int | None = None
    """Training steps, fewer where the machine is slow. Default: 40 on the CPU, 100 on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where it is there."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a device can do in a few minutes.

    overrides: of the model's configuration. op_budget_s: seconds for each comparison of an op.
    """

    model: str
    overrides: dict[str, int] = field(default_factory=dict)
    batch_size: int
    steps: int
    op_budget_s: float = 3.0


SIZES = {
    "cpu": Size(
        model="ijepa_vitt8_128", overrides={"image_size": 96, "predictor_dim": 192}, batch_size=8, steps=40
    ),
    "cuda": Size(model="ijepa_vitb16", batch_size=64, steps=100),
}


def run(config: Demo, console: Console) -> int:
    """0 if the curves agree, 1 if not. Raises ValueError or FileNotFoundError for bad input."""
    device = choose_device(config.device)
    size = SIZES[device.type]
    steps = size.steps if config.steps is None else config.steps
    if steps < LEAST_STEPS:
        raise ValueError(f"--steps: expected at least {LEAST_STEPS}, got {steps}")
    if not config.output.absolute().parent.is_dir():
        raise FileNotFoundError(f"--output: {config.output.parent} is not a folder")
    if config.output.is_dir():
        raise IsADirectoryError(f"--output: expected a file, got the folder {config.output}")

    torch.manual_seed(SEED)
    model = models.create(size.model, **size.overrides).to(device)
    frames, batches = _load(model, config.data or sample_clips_folder(), size.batch_size, steps, device)
    rates = partial(_rates, steps)
    float32, teacher = _train("float32", model, batches, rates, None, device, console)
    # As many steps as float32 had time for: its losses are what bfloat16 is held to.
    batches_left = batches[: len(float32.eager.losses)]
    bfloat16, _ = _train("bfloat16", model, batches_left, rates, float32.eager.losses, device, console)
    rows = _time_ops(device, size.op_budget_s, console)

    results = DemoResults(
        setting=_setting(model, batches),
        trainings=[float32, bfloat16],
        rows=rows,
        pictures=_pictures(teacher, frames, batches, model.config.patch_size),
        machine=fingerprint(),
    )
    for table in tables([float32.row, bfloat16.row, *rows], console.width):
        console.print(table)
    config.output.write_text(demo_page(results), encoding="utf-8")
    for training in results.trainings:
        console.print(_agreement_line(training), highlight=False)
    console.print(f"report: {config.output}", highlight=False, soft_wrap=True)
    return 0 if results.agrees else 1


def _setting(model: IJEPA, batches: Sequence[Batch]) -> str:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    side, patch = model.config.image_size, model.config.patch_size
    return (
        f"Here a model of {millions:.1f} million parameters saw batches of {len(batches[0].pixels)} frames of "
        f"{side}x{side} pixels, {(side // patch) ** 2} patches each."
    )


def _load(
    model: IJEPA, folder: Path, batch_size: int, steps: int, device: torch.device
) -> tuple[list[Tensor], list[Batch]]:
    """Frames as they were cropped, uint8 on the CPU, and the batches of every step."""
    image_size, patch_size = model.config.image_size, model.config.patch_size
    dataset = open_folder(folder, image_size=image_size, seed=SEED)
    masks = MultiBlockMasks(image_size // patch_size)
    batch_size = min(batch_size, len(dataset))
    order = EpochBatches(len(dataset), batch_size, seed=SEED, stop=steps)
    frames = [torch.stack([dataset[key] for key in keys]) for keys in order]
    batches = [
        Batch(normalize(pixels), masks.sample(batch_size, step)).to(device)
        for step, pixels in enumerate(frames)
    ]
    return frames, batches


def _train(
    precision: Precision,
    model: IJEPA,
    batches: Sequence[Batch],
    rates: Callable[[int], Hyperparameters],
    float32_losses: Sequence[float] | None,
    device: torch.device,
    console: Console,
) -> tuple[Training, torch.nn.Module]:
    """Both ways side by side, from copies of `model`; and the teacher that the accelerated one ends with.

    float32_losses: of the eager way, which the losses of another precision are held to.
    """
    eager = EagerIJEPAStep(model, precision=precision)
    ours = IJEPAStep(copy.deepcopy(model), precision=precision)
    # The eager way a second time: its times give the noise floor, its losses the yardstick.
    again = EagerIJEPAStep(model, precision=precision)
    contestants = {
        "eager": Contestant(eager),
        "ours": Contestant(ours),
        "again": Contestant(again, reverse=True),
    }
    with _progress(console, f"training, {precision}", len(batches)) as done:
        curves = train_side_by_side(
            contestants, batches, rates, budget_s=TRAINING_BUDGET_S, min_steps=LEAST_STEPS, done=done
        )

    losses = {name: curve.losses for name, curve in curves.items()}
    reference = losses["eager"] if float32_losses is None else float32_losses[: len(losses["eager"])]
    found = agreement(losses["ours"], [losses["eager"], losses["again"]], reference)
    seconds = {name: curve.seconds[WARM_UP_STEPS:] for name, curve in curves.items()}
    times = Comparison.of(seconds["ours"], seconds["eager"], twins=(seconds["eager"], seconds["again"]))
    one_more = partial(_call_step, batches[0], rates(0))
    row = Row(
        suite="demo",
        op="training step",
        shape=f"{model.config.image_size} px, B={len(batches[0].pixels)}",
        dtype=precision,
        device=str(device),
        implementation="jepa_fast",
        baseline="I-JEPA eager",
        error_ratio=found.ratio,
        peak_bytes=peak_memory(partial(one_more, ours), device),
        baseline_peak_bytes=peak_memory(partial(one_more, eager), device),
    )
    return Training(precision, curves["eager"], curves["ours"], found, row.with_times(times)), ours.teacher


def _call_step(batch: Batch, values: Hyperparameters, step: TrainingStep) -> None:
    step.step(*batch, **values._asdict())


def _rates(steps: int, step: int) -> Hyperparameters:
    """The published schedules over this short run."""
    return Hyperparameters(
        schedules.learning_rate(step, total_steps=steps, warmup_steps=round(PUBLISHED_WARMUP * steps)),
        schedules.weight_decay(step, total_steps=steps),
        schedules.momentum(step, total_steps=steps),
    )


def _time_ops(device: torch.device, budget_s: float, console: Console) -> list[Row]:
    cases = [(name, case) for name in OP_SUITES for case in suites.load(name).cases() if case.quick]
    rows = []
    with _progress(console, "timing the ops", len(cases)) as done:
        for suite, case in cases:
            rows += run_case(case, suite=suite, device=device, budget_s=budget_s)
            done()
    return rows


@torch.no_grad()
def _pictures(
    teacher: torch.nn.Module, frames: Sequence[Tensor], batches: Sequence[Batch], patch_size: int
) -> Pictures:
    """The first frames of the training with their masks, and the teacher's view of all frames of some
    batches."""
    first = batches[0]
    batch_size = len(first.pixels)
    shown = min(SHOWN_FRAMES, batch_size)
    blocks = first.masks.target.cpu().unflatten(0, (-1, batch_size))  # [masks, B, K]
    return Pictures(
        frames=frames[0][:shown],
        contexts=list(first.masks.context.cpu()[:shown]),
        targets=[list(blocks[:, sample]) for sample in range(shown)],
        features=torch.cat([teacher(batch.pixels).float().cpu() for batch in batches[:FEATURE_BATCHES]]),
        patch_size=patch_size,
    )


def _agreement_line(training: Training) -> str:
    found = training.agreement
    if found.first_disagreement is None:
        return (
            f"{training.precision}: the losses agree at all {len(found.ours)} steps; largest relative "
            f"difference {max(found.ours):.1e}, budget at the end {found.budget[-1]:.1e}"
        )
    step = found.first_disagreement
    return (
        f"[red]{training.precision}: the losses disagree from step {step + 1} on: relative difference "
        f"{found.ours[step]:.1e}, budget {found.budget[step]:.1e}[/red]"
    )


@contextmanager
def _progress(console: Console, description: str, total: int) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total)
        yield partial(progress.advance, task)


def main() -> None:
    """Read the command line, run, exit with the code; bad input is one line."""
    config = tyro.cli(Demo, prog="python -m jepa_fast.bench.demo")
    try:
        code = run(config, make_console())
    except (ValueError, OSError) as error:
        print(f"demo: error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130  # 128 + SIGINT, as a shell reports it
    sys.exit(code)


if __name__ == "__main__":
    main()
