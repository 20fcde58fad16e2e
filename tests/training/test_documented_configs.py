"""The configurations in docs/configs: their models, views and masks exist, and their rates are the published ones."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from jepa_fast.masks import MaskSets
from jepa_fast.training import schedules, setup
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.config_file import read_config
from jepa_fast.training.systems import make_system

CONFIGS = Path(__file__).parents[2] / "docs" / "configs"
SAMPLES = 22_000_000


class Published(NamedTuple):
    """What a recipe comes to.

    ends: learning rate, weight decay and momentum of the last step. targets: target masks of a sample.
    clip: the norm, and the first step that it holds in.
    """

    steps: int
    batch_size: int
    peak: float
    ends: tuple[float, float, float]
    frames: int
    size: int
    targets: int
    clip: tuple[float, int] | None = None


STILL = 0.04, 0.99925
# Where schedules are stretched by 1.25, they end after four fifths; a cosine then has (1 - cos(0.8 pi)) / 2 = 0.9045 of
# its way behind it. V-JEPA's rate has a warm-up of 12 000 steps first: 78 000 of 100 500 are 0.8813.
PUBLISHED = {
    "ijepa_vith14": Published(187_500, 2048, 1e-3, (1e-6, 0.4, 1.0), 1, 224, 4),
    "vjepa_vitl_224": Published(
        90_000, 3072, 6.25e-4, (7.504e-5, 0.04 + 0.9045 * 0.36, 0.9996), 16, 224, 2, (10.0, 12_300)
    ),
    "vjepa2_vitl_256": Published(240_000, 3072, 5.25e-4, (5.25e-4, *STILL), 16, 256, 2),
    "vjepa2_vitl_256_cooldown": Published(12_000, 3072, 5.25e-4, (1.058e-4, *STILL), 64, 256, 2),
    "vjepa21_vitG_256": Published(300_000, 3072, 6e-4, (6e-4, *STILL), 16, 256, 2),
    "vjepa21_vitG_256_images": Published(300_000, 4608, 6e-4, (6e-4, *STILL), 1, 256, 1),
    "vjepa21_vitG_256_cooldown": Published(12_000, 3072, 6e-4, (1.208e-4, *STILL), 64, 256, 2),
    "lejepa_vitl14": Published(250_200, 512, 5e-4, (5e-7, 0.05, 1.0), 1, 224, 0),
}


def plan_of(path: Path) -> tuple[TrainConfig, Any, dict[str, Any]]:
    config = read_config(path, TrainConfig)
    with torch.device("meta"):
        system = make_system(config)
    return config, system, setup.make_plan(config, system=system, samples=SAMPLES)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_step_has_its_rates(path: Path) -> None:
    """And the folder, the weights and the views are there for it."""
    config, system, plan = plan_of(path)
    assert config.output == Path("runs") / path.stem
    assert (
        config.weights is None or (CONFIGS / "published" / config.weights.name).with_suffix(".toml").exists()
    )
    ends = sorted((config.start_lr, config.lr, config.final_lr))
    peaks = 0
    for step in range(plan["steps"]):
        rates = schedules.rates(step, plan)
        assert ends[0] <= rates["lr"] <= ends[2]
        assert config.weight_decay <= rates["weight_decay"] <= config.final_weight_decay
        assert config.momentum <= rates["momentum"] <= config.final_momentum
        peaks += rates["lr"] == config.lr
    # The warm-up reaches the peak, unless there is none and the decay has begun.
    assert peaks >= 1 or plan["warmup_steps"] == 0
    if system.sampler is not None:
        masks = system.sampler(2, 0, torch.Generator().manual_seed(0))
        assert masks.token_counts[0] > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_is_as_published(name: str) -> None:
    config, system, plan = plan_of(CONFIGS / "published" / f"{name}.toml")
    wanted = PUBLISHED[name]
    assert (plan["steps"], config.batch_size, config.lr) == (wanted.steps, wanted.batch_size, wanted.peak)
    last = schedules.rates(plan["steps"] - 1, plan)
    for value, end in zip(last.values(), wanted.ends, strict=True):
        assert value == pytest.approx(end, rel=1e-3)
    assert (system.frames, system.image_size) == (wanted.frames, wanted.size)
    ratio = (0.75, 1.35) if name.startswith("vjepa") else (3 / 4, 4 / 3)
    assert all(kind.aspect_ratio == ratio for kind in system.kinds)
    masks = system.sampler(3, 0, torch.Generator().manual_seed(0)) if system.sampler else MaskSets()
    sets = masks if isinstance(masks, MaskSets) else [masks]
    assert sum(len(one.target) for one in sets) == 3 * wanted.targets
    clipped = [step for step in range(0, plan["steps"], 100) if schedules.max_norm(step, plan)]
    if wanted.clip is None:
        assert not clipped
    else:
        assert (config.max_norm, clipped[0]) == wanted.clip


def test_all_published_recipes_are_held_against_their_numbers() -> None:
    assert {path.stem for path in (CONFIGS / "published").iterdir()} == set(PUBLISHED)
