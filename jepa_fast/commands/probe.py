"""`jepa-fast probe`: what the frozen features of a checkpoint are worth."""

from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from jepa_fast.commands.errors import UsageError

_DATA_PACKAGES = ("PIL", "av", "webdataset")
_NAMES = {
    "linear": "linear probe",
    "attentive": "attentive probe",
    "knn": "nearest neighbours",
    "pixels": "raw pixels",
}


@dataclass(frozen=True)
class Probe:
    """Measure what the frozen features of a checkpoint of `jepa-fast train` are worth.

    The encoder (the teacher, where the system has one) embeds the central square of every labelled sample, and
    classifiers are trained on that: logistic regression on mean tokens (linear), an attentive head on all tokens
    (attentive), 20 nearest neighbours (knn), and, to compare with, logistic regression on the first 128 principal
    components of the pixels (pixels). Penalties and learning rates are chosen by the validation part of the data.
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A checkpoint, or the output folder of a run, whose latest is taken."""
    data: Annotated[str, arg(metavar="PATH")]
    """Labelled data: folders named after classes (in train, val, test), an .npz or .tar file, webdataset shards."""
    label: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the first there is)")] = (
        None
    )
    """Which labels, where the data has several: an array of the .npz file; for clips "file" makes each video a class,
    "arrow_of_time" asks whether a clip is played forward or backward."""
    methods: tuple[Literal["linear", "attentive", "knn", "pixels"], ...] = (
        "linear",
        "attentive",
        "knn",
        "pixels",
    )
    """What to train."""
    network: Annotated[
        Literal["teacher", "encoder"] | None,
        arg(help_behavior_hint="(default: the teacher where there is one)"),
    ] = None
    """Whose features."""
    layers: Annotated[int, arg(metavar="NUMBER")] = 4
    """Linear and knn: mean tokens of so many last blocks, side by side."""
    epochs: Annotated[int, arg(metavar="EPOCHS")] = 20
    """Passes of the attentive probe over the training part."""
    batch_size: Annotated[int, arg(metavar="IMAGES")] = 64
    """Samples that are embedded at a time."""
    workers: Annotated[int, arg(metavar="PROCESSES")] = 0
    """Data loading processes."""
    pictures: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="(default: none)")] = None
    """Write a picture of the features of some test samples: their principal components as colours."""
    output: Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="(default: none)")] = None
    """Write the accuracies there, too."""
    seed: Annotated[int, arg(metavar="SEED")] = 0
    """Of splits, where the data has none, and of the attentive probe."""
    draws: Annotated[int, arg(metavar="NUMBER")] = 1
    """Draw splits so many times, with the seeds from --seed on, and report means: for small data without splits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto is CUDA where there is a device, else the CPU."""

    def __post_init__(self) -> None:
        for name in ("layers", "epochs", "batch_size", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers: expected 0 or more, got {self.workers}")


def run(config: Probe) -> int:
    """0 once measured. Raises UsageError, and what `jepa_fast.probes.run.evaluate` raises."""
    try:
        from rich.console import Console
        from rich.table import Table

        from jepa_fast.probes.run import evaluate

        report = evaluate(
            config.checkpoint, config.data, label=config.label, methods=config.methods, network=config.network,
            layers=config.layers, epochs=config.epochs, batch_size=config.batch_size, workers=config.workers,
            pictures=config.pictures, device=config.device, seed=config.seed, draws=config.draws,
        )  # fmt: skip
    except ModuleNotFoundError as error:
        if error.name not in _DATA_PACKAGES:
            raise
        raise UsageError(
            f"{error.name} is not installed; `pip install 'jepa-fast[data]'` brings it"
        ) from None
    samples = ", ".join(f"{number} {name}" for name, number in report.samples.items())
    drawn = " (drawn here)" if report.drawn_splits else ""
    print(f"{report.network} after {report.step} steps; {report.classes} classes; samples: {samples}{drawn}")
    if report.skipped:
        print(f"skipped: {report.skipped} samples that cannot be read")
    table = Table("", "train", "val", "test", "chosen by val")
    for method, score in report.scores.items():
        figures = [f"{100 * value:.1f} %" for value in (score.train, score.val, score.test)]
        if score.tests:
            figures[-1] = f"{100 * score.test:.1f} ± {100 * stdev(score.tests):.1f} %"
        table.add_row(_NAMES[method], *figures, score.chosen)
    if report.scores:
        table.add_row("most frequent class", "", "", f"{100 * report.majority:.1f} %", "")
        Console().print(table)
    if config.output:
        report.write(config.output)
        print(f"accuracies: {config.output}")
    if config.pictures:
        print(f"pictures: {config.pictures}")
    return 0
