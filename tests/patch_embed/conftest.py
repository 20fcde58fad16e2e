from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import masked_patch_embed, patchify
from jepa_fast.bench.baselines.patch_embed import embed_then_gather
from jepa_fast.bench.measure import check_error

CANARY = 77.0
MEAN, STD = (0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 0.25)


class Problem:
    """Tensors of one call, and the call itself in several ways.

    patch: two sizes for images, three for videos; grid: as many counts of patches. kept: tokens of each mask; None
    keeps all.
    """

    def __init__(
        self,
        patch: Sequence[int] = (8, 8),
        grid: Sequence[int] = (3, 4),
        *,
        samples: int = 2,
        channels: int = 3,
        features: int = 20,
        masks: int = 2,
        kept: int | None = 5,
        pixels: torch.dtype = torch.float32,
        dtype: torch.dtype = torch.float32,
        position: torch.dtype | None = torch.float32,
        normalize: bool = False,
        bias: bool = True,
        device: str = "cpu",
    ) -> None:
        random = torch.Generator().manual_seed(0)
        shape = (samples, channels, *(n * size for n, size in zip(grid, patch, strict=True)))
        if pixels == torch.uint8:
            drawn = torch.randint(256, shape, generator=random, dtype=torch.uint8)
        else:
            drawn = torch.randn(shape, generator=random)
        length = 1
        for n in grid:
            length *= n
        self.patch, self.dtype = tuple(patch), dtype
        self.pixels = drawn.to(device, pixels)
        weight = 0.1 * torch.randn(features, channels, *patch, generator=random)
        self.weight = weight.to(device, dtype)
        self.bias = torch.randn(features, generator=random).to(device, dtype) if bias else None
        self.position = None
        if position is not None:
            self.position = torch.randn(length, features, generator=random).to(device, position)
        order = torch.rand(masks * samples, length, generator=random).argsort(1)
        self.index = None if kept is None else order[:, :kept].to(device)
        self.statistics: dict[str, Any] = {}
        if normalize:
            self.statistics = {"mean": MEAN[:channels], "std": STD[:channels]}

    @property
    def leaves(self) -> list[Tensor | None]:
        return [self.weight, self.bias, self.position]

    def ours(self, implementation: str, **options: Any) -> Callable[..., Tensor]:
        return lambda weight, bias, position: masked_patch_embed(
            self.pixels, weight, bias, self.index, position=position,
            implementation=implementation, **self.statistics, **options,
        )  # fmt: skip

    def eager(self, weight: Tensor, bias: Tensor | None, position: Tensor | None) -> Tensor:
        masks = None if self.index is None else self.index.split(len(self.pixels))
        pixels, statistics = self.pixels, self.statistics
        if pixels.dtype == torch.uint8 and not statistics:
            pixels = pixels.float() / 255
        elif pixels.dtype != torch.uint8 and statistics:
            centre, spread = (
                torch.tensor(statistics[k], device=pixels.device).view(-1, *(1 for _ in self.patch))
                for k in ("mean", "std")
            )
            pixels, statistics = (pixels.float() - centre) / spread, {}
        return embed_then_gather(pixels, weight, bias, masks, position=position, **statistics)

    def hold(self, implementation: str) -> None:
        """Against the budget, forward and every gradient."""
        exact = [None if x is None else x.double() for x in self.leaves]
        result = check_error(
            differentiated(self.ours(implementation), self.leaves),
            differentiated(self.eager, self.leaves),
            differentiated(self.ours("reference"), exact),
        )
        assert result.passed, result.reason


def differentiated(call: Callable[..., Tensor], leaves: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The result and the gradients of a weighted sum of it in all leaves."""
    leaves = [x if x is None else x.detach().requires_grad_() for x in leaves]
    out = call(*leaves)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    given = [x for x in leaves if x is not None]
    return out.detach(), *torch.autograd.grad(out, given, upstream)


@pytest.fixture
def problem() -> type[Problem]:
    return Problem


@pytest.fixture(name="differentiated")
def differentiated_fixture() -> Callable[..., tuple[Tensor, ...]]:
    return differentiated


def _poisoned_memory(implementation: str, problem: Problem) -> None:
    rooms: list[Tensor] = []
    empty = torch.empty

    def poisoned(*shape: Any, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        wanted = empty(*shape, dtype=dtype, device="meta")
        if not dtype.is_floating_point:  # scratch
            return empty(*shape, dtype=dtype, device=device)
        room = torch.full((wanted.numel() + 64,), torch.nan, dtype=dtype, device=device)
        room[:32] = room[-32:] = CANARY
        rooms.append(room)
        return room[32:-32].view(wanted.shape)

    def run() -> list[Tensor]:
        rows = patchify(
            problem.pixels,
            problem.patch,
            dtype=problem.dtype,
            implementation=implementation,
            **problem.statistics,
        )
        return [rows, *differentiated(problem.ours(implementation), problem.leaves)]

    expected = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        found = run()
    assert len(rooms) >= 3
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.isfinite().all()
    assert all((room[:32] == CANARY).all() and (room[-32:] == CANARY).all() for room in rooms)


@pytest.fixture
def poisoned_memory() -> Callable[..., None]:
    """Checks that outputs in NaN-poisoned memory are written whole, and canaries round them are not."""
    return _poisoned_memory
