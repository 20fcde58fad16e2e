"""One evaluation of a checkpoint: features, splits, probes, and the same on pixels."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from jepa_fast.data import SPLITS, Source, open_source, stream_seed
from jepa_fast.data.progress import slow_progress
from jepa_fast.probes.features import Features, Frozen, extract, load_frozen
from jepa_fast.probes.heads import (
    Part,
    Score,
    Splits,
    attentive_probe,
    linear_probe,
    mean_score,
    nearest_neighbours,
    pixel_baseline,
)
from jepa_fast.probes.pictures import feature_sheet
from jepa_fast.training.setup import choose_device

METHODS = ("linear", "attentive", "knn", "pixels")
SHOWN = 8  # pictures in a feature sheet
_SHARES = (0.8, 0.1)  # of train and val where the data has no splits


@dataclass(frozen=True)
class Report:
    """Accuracies by method; samples by split; the classes; the training step of the encoder and which one it was."""

    scores: dict[str, Score]
    samples: dict[str, int]
    classes: int
    majority: float
    step: int
    network: str
    skipped: int
    drawn_splits: bool

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def evaluate(
    checkpoint: Path,
    data: str,
    *,
    label: str | None = None,
    methods: Sequence[str] = METHODS,
    network: str | None = None,
    layers: int = 4,
    epochs: int = 20,
    batch_size: int = 64,
    workers: int = 0,
    pictures: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    draws: int = 1,
) -> Report:
    """Scores the frozen encoder of `checkpoint` on labelled `data`; see the command `jepa-fast probe`.

    draws: how often splits are drawn, with `seed` and those after it; accuracies are their means then.

    Raises ValueError or FileNotFoundError, naming the argument.
    """
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"methods: expected some of {', '.join(METHODS)}, got {method}")
    where = choose_device(device)
    frozen = load_frozen(checkpoint, network=network, image_size=None, device=where)
    source = open_source(
        data,
        short_side=frozen.system.image_size,
        frames=frozen.system.frames,
        frame_stride=frozen.frame_stride,
        label=label,
    )
    if methods and source.labels is None:
        raise ValueError(
            f"data: expected labels, got none in {data}; with no methods, pictures can be made of it"
        )
    if draws > 1 and source.splits is not None:
        raise ValueError(f"draws: expected 1, as {data} has splits of its own, got {draws}")
    drawn = [split_indices(source, seed + number) for number in range(draws)]
    if methods:
        for train, _, _ in drawn:  # before the features, which take their time
            _require_classes(source, train)
    rows = [index for part in drawn[0] for index in part]  # the same ones in every draw
    with slow_progress("features", math.ceil(len(rows) / batch_size)) as advance:
        features = extract(
            frozen, source, rows, layers=min(layers, _depth(frozen)), batch_size=batch_size, workers=workers,
            tokens="attentive" in methods or pictures is not None, advance=advance,
        )  # fmt: skip
    if pictures is not None:
        _draw(frozen, features, drawn[0][2], pictures)
    scores: dict[str, Score] = {}
    if methods:
        found = []
        with slow_progress("probes", draws) as advance:
            for number, parts in enumerate(drawn):
                found.append(_scores(source, features, parts, methods, epochs, seed + number, where))
                advance()
        scores = {method: mean_score([draw[method] for draw in found]) for method in methods}
    labels = source.labels if source.labels is not None else torch.zeros(len(source), dtype=torch.int64)
    majorities = [
        (labels[test] == labels[train].bincount().argmax()).double().mean().item() for train, _, test in drawn
    ]
    return Report(
        scores=scores,
        samples={name: len(part) for name, part in zip(SPLITS, drawn[0], strict=True)},
        classes=len(source.classes),
        majority=fmean(majorities),
        step=frozen.step,
        network=frozen.network,
        skipped=len(source.skipped),
        drawn_splits=source.splits is None,
    )


def split_indices(source: Source, seed: int) -> list[list[int]]:
    """Labelled samples of the training, validation and test part; drawn where the source does not say.

    Where it has no validation or test part, a tenth of the training part stands in. Samples of a group stay together.
    """
    usable = source.failed == 0
    if source.labels is not None:
        usable &= source.labels >= 0
    chosen = usable.nonzero().flatten()
    group_of = torch.arange(len(source)) if source.groups is None else source.groups
    groups = group_of[chosen].unique()
    generator = torch.Generator().manual_seed(stream_seed(seed, "splits"))
    shuffled = groups[torch.randperm(len(groups), generator=generator)]
    if source.splits is None:
        first, second = (round(len(groups) * share) for share in (_SHARES[0], sum(_SHARES)))
        parts = [shuffled[:first], shuffled[first:second], shuffled[second:]]
    else:
        split_of = torch.zeros(len(source), dtype=torch.int64)
        split_of[group_of] = source.splits
        parts = [shuffled[split_of[shuffled] == number] for number in range(len(SPLITS))]
        for number in (1, 2):
            if not len(parts[number]):
                tenth = len(parts[0]) // 10
                parts[number], parts[0] = parts[0][:tenth], parts[0][tenth:]
    for name, part in zip(SPLITS, parts, strict=True):
        if not len(part):
            raise ValueError(
                f"data: expected samples to {name} on, got {len(chosen)} in all and none of these"
            )
    return [chosen[torch.isin(group_of[chosen], part)].tolist() for part in parts]


def _depth(frozen: Frozen) -> int:
    from jepa_fast.nn.block import Block

    return sum(isinstance(part, Block) for part in frozen.encoder.modules())


def _require_classes(source: Source, train: list[int]) -> None:
    """A single class is always told right, and a single sample has no variance."""
    assert source.labels is not None
    found = len(source.labels[train].unique())
    if found < 2:
        raise ValueError(
            f"data: expected training samples of 2 or more classes in {source.root}, "
            f"got {len(train)} of {found}"
        )


def _scores(
    source: Source,
    features: Features,
    parts: list[list[int]],
    methods: Sequence[str],
    epochs: int,
    seed: int,
    device: torch.device,
) -> dict[str, Score]:
    assert source.labels is not None
    labels, classes = source.labels, len(source.classes)
    place = {index: row for row, index in enumerate(features.indices.tolist())}
    _require_classes(source, [index for index in parts[0] if index in place])  # of those that could be read
    rows = [torch.tensor([place[index] for index in part if index in place]) for part in parts]

    def splits(x: Tensor, where: torch.device) -> Splits:
        made = [Part(x[row].to(where), labels[features.indices[row]].to(where)) for row in rows]
        return Splits(*made)

    probes: dict[str, Any] = {
        "linear": lambda: linear_probe(splits(features.pooled, device), classes),
        "attentive": lambda: attentive_probe(
            splits(_tokens(features), torch.device("cpu")), classes, epochs=epochs, seed=seed, device=device
        ),
        "knn": lambda: nearest_neighbours(splits(features.pooled, device), classes),
        "pixels": lambda: pixel_baseline(splits(features.pixels, device), classes),
    }
    return {method: probes[method]() for method in methods}


def _tokens(features: Features) -> Tensor:
    assert features.tokens is not None
    return features.tokens


def _draw(frozen: Frozen, features: Features, test: list[int], path: Path) -> None:
    """Pictures spread over the test part."""
    if frozen.system.frames > 1:
        raise ValueError(f"pictures: expected a model of images, got one of {frozen.system.frames} frames")
    order = features.indices.tolist()
    known = [index for index in test if index in set(order)]
    shown = [known[i * len(known) // min(SHOWN, len(known))] for i in range(min(SHOWN, len(known)))]
    rows = torch.tensor([order.index(index) for index in shown])
    tokens = _tokens(features)[rows][:, 1 if frozen.has_class_token else 0 :]
    size = frozen.system.image_size
    feature_sheet(features.pixels[rows].view(-1, 3, size, size), tokens, path)
