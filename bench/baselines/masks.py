"""The mask collators of I-JEPA and V-JEPA as their published code draws: sample by sample, block by block."""

import math

import torch
from torch import Generator, Tensor

from jepa_fast.masks import TubeSet


def _between(limits: tuple[float, float], generator: Generator) -> float:
    return limits[0] + torch.rand(1, generator=generator).item() * (limits[1] - limits[0])


def _block(side: tuple[int, int], area: int, ratio: float, spare: int) -> tuple[int, int]:
    height = round(math.sqrt(area * ratio))
    width = round(math.sqrt(area / ratio))
    while height > side[0] - spare:
        height -= 1
    while width > side[1] - spare:
        width -= 1
    return height, width


def vjepa_masks(
    grid: tuple[int, int, int], sets: tuple[TubeSet, ...], batch_size: int, step: int
) -> list[tuple[Tensor, Tensor]]:
    """For each set context and target `[B, K]`, from torch's global generator."""
    frames, rows, columns = grid
    collated = []
    for tube_set in sets:
        generator = Generator().manual_seed(step)
        length = max(1, int(frames * _between(tube_set.temporal_scale, generator)))
        area = int(rows * columns * _between(tube_set.spatial_scale, generator))
        ratio = _between(tube_set.aspect_ratio, generator)
        height, width = _block((rows, columns), area, ratio, 0)
        last = max(1, int(frames * tube_set.max_temporal_keep))
        contexts: list[Tensor] = []
        targets: list[Tensor] = []
        while len(contexts) < batch_size:
            kept = torch.ones(grid, dtype=torch.int32)
            for _ in range(tube_set.num_blocks):
                top = torch.randint(0, rows - height + 1, (1,))
                left = torch.randint(0, columns - width + 1, (1,))
                start = torch.randint(0, frames - length + 1, (1,))
                block = torch.ones(grid, dtype=torch.int32)
                block[start : start + length, top : top + height, left : left + width] = 0
                block[last:] = 0
                kept *= block
            flat = kept.flatten()
            context = torch.nonzero(flat).squeeze(1)
            if len(context):
                contexts.append(context)
                targets.append(torch.argwhere(flat == 0).squeeze(1))
        keep = min(len(context) for context in contexts)
        keep = keep if tube_set.max_keep is None else min(keep, tube_set.max_keep)
        aim = min(len(target) for target in targets)
        collated.append(
            (
                torch.stack([context[:keep] for context in contexts]),
                torch.stack([target[:aim] for target in targets]),
            )
        )
    return collated


def ijepa_masks(
    side: int,
    batch_size: int,
    step: int,
    *,
    context_scale: tuple[float, float] = (0.85, 1.0),
    target_scale: tuple[float, float] = (0.15, 0.2),
    aspect_ratio: tuple[float, float] = (0.75, 1.5),
    num_targets: int = 4,
    min_keep: int = 10,
) -> tuple[Tensor, Tensor]:
    """Context `[B, Nc]` and targets `[num_targets * B, Np]`, mask-major, from torch's global generator."""
    generator = Generator().manual_seed(step)

    def size(scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
        draw = torch.rand(1, generator=generator).item()
        area = int(side * side * (scale[0] + draw * (scale[1] - scale[0])))
        return _block((side, side), area, aspect[0] + draw * (aspect[1] - aspect[0]), 1)

    target_size, context_size = size(target_scale, aspect_ratio), size(context_scale, (1.0, 1.0))

    def place(block: tuple[int, int], regions: list[Tensor]) -> tuple[Tensor, Tensor]:
        tries = 0
        while True:
            top = torch.randint(0, side - block[0], (1,))
            left = torch.randint(0, side - block[1], (1,))
            mask = torch.zeros((side, side), dtype=torch.int32)
            mask[top : top + block[0], left : left + block[1]] = 1
            for region in regions[: max(len(regions) - tries // 20, 0)]:
                mask *= region
            index = torch.nonzero(mask.flatten())
            if len(index) > min_keep:
                outside = torch.ones((side, side), dtype=torch.int32)
                outside[top : top + block[0], left : left + block[1]] = 0
                return index.squeeze(1), outside
            tries += 1

    contexts, targets = [], []
    for _ in range(batch_size):
        drawn = [place(target_size, []) for _ in range(num_targets)]
        targets.append([index for index, _ in drawn])
        contexts.append(place(context_size, [region for _, region in drawn])[0])
    keep = min(len(context) for context in contexts)
    aim = min(len(target) for of_image in targets for target in of_image)
    rows = [of_image[number][:aim] for number in range(num_targets) for of_image in targets]
    return torch.stack([context[:keep] for context in contexts]), torch.stack(rows)
