"""Classifiers on frozen features: logistic regression, an attentive head, nearest neighbours; and PCA.

Whatever has to be chosen (a penalty, a learning rate) is chosen by the validation part, never by the test part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PENALTIES = tuple(10.0**power for power in range(-6, 1))  # of the squared weights, per sample
NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the votes, as in arXiv:1805.01978, section 3.4
PIXEL_COMPONENTS = 128


@dataclass(frozen=True)
class Part:
    """Features `[n, ...]` and labels int64 `[n]`."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Splits:
    train: Part
    val: Part
    test: Part

    def with_features(self, train: Tensor, val: Tensor, test: Tensor) -> "Splits":
        return Splits(Part(train, self.train.y), Part(val, self.val.y), Part(test, self.test.y))


@dataclass(frozen=True)
class Score:
    """Accuracies, 0 to 1, and what was chosen. tests: of each draw of the splits, whose mean `test` is."""

    train: float
    val: float
    test: float
    chosen: str
    tests: tuple[float, ...] = ()


def mean_score(draws: Sequence[Score]) -> Score:
    """One score of several draws of the splits; a single draw stays as it is."""
    if len(draws) == 1:
        return draws[0]
    train, val, test = (fmean(getattr(draw, name) for draw in draws) for name in ("train", "val", "test"))
    return Score(train, val, test, f"in each of {len(draws)} draws", tuple(draw.test for draw in draws))


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """scores: `[n, classes]`; nan without samples."""
    return (scores.argmax(1) == labels).double().mean().item()


def standardized(splits: Splits) -> Splits:
    """Every feature with mean 0 and variance 1 over the training part."""
    mean, std = splits.train.x.mean(0), splits.train.x.std(0).clamp(min=1e-6)
    return splits.with_features(*((part.x - mean) / std for part in (splits.train, splits.val, splits.test)))


def linear_probe(splits: Splits, classes: int) -> Score:
    """Multinomial logistic regression on standardised features, the penalty chosen by the validation part."""
    splits = standardized(splits)
    best: tuple[tuple[float, float], float, nn.Linear] | None = None
    start: nn.Linear | None = None
    for penalty in reversed(PENALTIES):
        layer = start = logistic_regression(splits.train, classes, penalty, start)
        scores = layer(splits.val.x)
        # A small part has the same accuracy with several penalties: the likelier labels then decide.
        value = accuracy(scores, splits.val.y), -F.cross_entropy(scores, splits.val.y).item()
        if best is None or value > best[0]:
            best = value, penalty, layer
    assert best is not None
    _, penalty, layer = best
    train, val, test = (accuracy(layer(part.x), part.y) for part in (splits.train, splits.val, splits.test))
    return Score(train, val, test, f"penalty {penalty:g}")


def logistic_regression(
    part: Part, classes: int, penalty: float, start: nn.Linear | None = None
) -> nn.Linear:
    """Minimises the mean cross-entropy plus `penalty` times the squared weights; from `start` or from zero."""
    layer = nn.Linear(part.x.shape[1], classes, device=part.x.device)
    with torch.no_grad():
        layer.weight.copy_(start.weight) if start else layer.weight.zero_()
        layer.bias.copy_(start.bias) if start else layer.bias.zero_()
    solver = torch.optim.LBFGS(
        layer.parameters(),
        max_iter=200,
        history_size=10,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(layer(part.x), part.y) + penalty * layer.weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    return layer.requires_grad_(False)


class AttentiveHead(nn.Module):
    """One learned query attends to the tokens; an MLP and a linear layer read what it found.

    The probe of V-JEPA (arXiv:2404.08471, section 4.3) with one head per 64 channels.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, max(1, dim // 64), batch_first=True)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.out = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, N, dim]` -> `[B, classes]`."""
        keys = self.norm(tokens)
        found = (
            self.query
            + self.attention(self.query.expand(len(tokens), -1, -1), keys, keys, need_weights=False)[0]
        )
        return self.out((found + self.mlp(self.mlp_norm(found)))[:, 0])


def attentive_probe(
    splits: Splits,
    classes: int,
    *,
    epochs: int = 20,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device,
) -> Score:
    """AdamW over the tokens with a cosine schedule, the learning rate chosen by the validation part."""
    best: tuple[float, float, AttentiveHead] | None = None
    for lr in (1e-3, 3e-4):
        head = _train_head(splits.train, classes, epochs, batch_size, lr, seed, device)
        value = _head_accuracy(head, splits.val, device)
        if best is None or value > best[0]:
            best = value, lr, head
    assert best is not None
    _, lr, head = best
    train, val, test = (
        _head_accuracy(head, part, device) for part in (splits.train, splits.val, splits.test)
    )
    return Score(train, val, test, f"lr {lr:g}")


def _train_head(
    part: Part, classes: int, epochs: int, batch_size: int, lr: float, seed: int, device: torch.device
) -> AttentiveHead:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AttentiveHead(part.x.shape[2], classes).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0.05)
    steps = epochs * math.ceil(len(part.x) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(epochs):
        for rows in torch.randperm(len(part.x), generator=generator).split(batch_size):
            loss = F.cross_entropy(head(part.x[rows].to(device).float()), part.y[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.no_grad()
def _head_accuracy(head: AttentiveHead, part: Part, device: torch.device) -> float:
    scores = [head(rows.to(device).float()).cpu() for rows in part.x.split(256)]
    return accuracy(torch.cat(scores), part.y) if scores else math.nan


def nearest_neighbours(splits: Splits, classes: int, *, neighbours: int = NEIGHBOURS) -> Score:
    """Votes of the most similar training samples (cosine), weighted by exp(similarity / 0.07).

    A training sample is not its own neighbour.
    """
    neighbours = min(neighbours, len(splits.train.x) - 1)
    # About the mean: features of one network share a direction that says nothing.
    mean = splits.train.x.mean(0)
    bank = F.normalize(splits.train.x - mean, dim=1)

    def score(part: Part, *, same: bool = False) -> float:
        right = 0
        for start, rows in zip(range(0, len(part.x), 512), part.x.split(512), strict=True):
            similarity = F.normalize(rows - mean, dim=1) @ bank.t()
            if same:
                similarity.diagonal(start).fill_(-math.inf)
            nearest, index = similarity.topk(neighbours, dim=1)
            votes = torch.zeros(len(rows), classes, device=rows.device)
            votes.scatter_add_(1, splits.train.y[index], ((nearest - 1) / TEMPERATURE).exp())
            right += int((votes.argmax(1) == part.y[start : start + len(rows)]).sum())
        return right / len(part.x) if len(part.x) else math.nan

    return Score(
        score(splits.train, same=True), score(splits.val), score(splits.test), f"{neighbours} neighbours"
    )


def principal_components(x: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Mean `[P]` and directions `[P, number]` of the largest variance of the rows of x, exactly."""
    mean = x.mean(0)
    centred = x - mean
    number = min(number, *x.shape)
    if len(x) < x.shape[1]:
        # The eigenvectors of the small Gram matrix, carried over.
        _, vectors = torch.linalg.eigh((centred @ centred.t()).double())
        directions = centred.t() @ vectors[:, -number:].to(x.dtype)
    else:
        _, vectors = torch.linalg.eigh((centred.t() @ centred).double())
        directions = vectors[:, -number:].to(x.dtype)
    return mean, F.normalize(directions, dim=0).flip(1)


def pixel_baseline(splits: Splits, classes: int) -> Score:
    """The linear probe on the first 128 principal components of the pixels themselves."""
    mean, directions = principal_components(splits.train.x, PIXEL_COMPONENTS)
    parts = (splits.train, splits.val, splits.test)
    return linear_probe(splits.with_features(*((part.x - mean) @ directions for part in parts)), classes)
