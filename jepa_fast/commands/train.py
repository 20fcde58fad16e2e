"""`jepa-fast train`: I-JEPA on a folder of images or videos."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jepa_fast.commands.errors import UsageError
from jepa_fast.training.config import TrainConfig

if TYPE_CHECKING:
    from jepa_fast.training.loop import StepFactory

_DATA_PACKAGES = ("PIL", "av")


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train I-JEPA on a folder of images or videos.

    Rates and schedules default to the published ones, which are meant for batches of 2048 images.
    Ctrl-C writes a checkpoint and exits with code 130; --resume latest continues from it, bit for bit.
    """


def run(config: Train) -> int:
    """0 once trained. Raises UsageError, and what `jepa_fast.training.loop.train` raises."""
    try:
        from jepa_fast.training.loop import train

        result = train(config, step_factory=_eager_step() if config.engine == "eager" else None)
    except ModuleNotFoundError as error:
        if error.name not in _DATA_PACKAGES:
            raise
        raise UsageError(
            f"{error.name} is not installed; `pip install 'jepa-fast[data]'` brings it"
        ) from None
    if not result.losses:
        print(f"nothing left to do: {result.checkpoint} is the end of the run")
        return 0
    print(
        f"{len(result.losses)} steps in {result.seconds:.1f} s, {result.images_per_second:.1f} images/s, "
        f"loss {result.losses[0]:.4f} -> {result.losses[-1]:.4f}, checkpoint: {result.checkpoint}"
    )
    return 0


def _eager_step() -> "StepFactory":
    from jepa_fast.bench.baselines.ijepa import EagerIJEPAStep

    return EagerIJEPAStep
