"""The report of the demonstration: what was trained, whether it agrees, what it gained, what it saw."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from jepa_fast.bench.measure import Machine, Row
from jepa_fast.bench.measure.agreement import Agreement
from jepa_fast.bench.measure.training import Curve
from jepa_fast.bench.report import figures
from jepa_fast.bench.report.columns import COLUMNS, HOST_COLUMNS, reasons, stacked
from jepa_fast.bench.report.html import definitions, machine_facts, render


@dataclass(frozen=True)
class Training:
    """One precision: the curves of both ways, whether they agree, and the row of the whole step."""

    precision: str
    eager: Curve
    ours: Curve
    agreement: Agreement
    row: Row

    @property
    def image(self) -> str:
        return figures.loss_curves(self.precision, self.eager.losses, self.ours.losses, self.agreement)


@dataclass(frozen=True)
class Pictures:
    """Frames with their masks, and features.

    frames: uint8 [n, 3, H, W]. contexts: per frame the visible patches. targets: per frame one tensor of
    patches for every block. features: [m, N, D] of the teacher, m >= n, the shown frames first.
    """

    frames: Tensor
    contexts: Sequence[Tensor]
    targets: Sequence[Sequence[Tensor]]
    features: Tensor
    patch_size: int


@dataclass(frozen=True)
class DemoResults:
    """setting: model, data and sizes in one sentence."""

    setting: str
    trainings: Sequence[Training]
    rows: Sequence[Row]
    pictures: Pictures
    machine: Machine

    @property
    def agrees(self) -> bool:
        return all(training.agreement.first_disagreement is None for training in self.trainings)


def demo_page(results: DemoResults) -> str:
    """The HTML text."""
    rows = [*(training.row for training in results.trainings), *results.rows]
    compared = [row for row in rows if row.host_overhead_us is None]
    pictures = results.pictures
    colors = figures.principal_colors(pictures.features)[: len(pictures.frames)]
    return render(
        "demo.html.j2",
        agrees=results.agrees,
        steps=min(len(training.ours.losses) for training in results.trainings),
        setting=results.setting,
        trainings=results.trainings,
        headline_rows=_first_of_each_op(results.rows),
        speed_image=figures.speed_bars(compared),
        memory_image=figures.memory_bars(compared),
        stacks=stacked(COLUMNS),
        compared_rows=compared,
        reasons=reasons(rows),
        host_stacks=stacked(HOST_COLUMNS),
        host_rows=[row for row in rows if row.host_overhead_us is not None],
        masks_image=figures.masked_frames(
            pictures.frames, pictures.contexts, pictures.targets, pictures.patch_size
        ),
        features_image=figures.feature_maps(pictures.frames, colors),
        definitions=definitions([*COLUMNS, *HOST_COLUMNS[4:]]),
        machine_facts=[*machine_facts(results.machine), ("again", "make demo")],
    )


def _first_of_each_op(rows: Sequence[Row]) -> list[Row]:
    """The headline of an op: its first case, against its first baseline, which is the published one."""
    firsts: dict[str, Row] = {}
    for row in rows:
        if row.host_overhead_us is None:
            firsts.setdefault(row.op, row)
    return list(firsts.values())
