"""`jepa-fast train`: a model on images or videos."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from jepa_fast.commands.errors import UsageError
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.config_file import read_config

if TYPE_CHECKING:
    from jepa_fast.training.loop import StepFactory

_DATA_PACKAGES = ("PIL", "av", "webdataset")


TERMINATED = 143  # 128 + SIGTERM, as a shell reports it


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train a model on images or videos.

    CONFIG is a TOML file with any of the options below as its keys (batch_size = 256); options on the command line
    come before it. Rates and schedules default to those published with I-JEPA, for batches of 2048 images.
    Ctrl-C and SIGTERM write a checkpoint and exit with code 130 or 143; --resume latest continues from it, bit for bit.
    On several devices: torchrun --nproc-per-node 8 -m jepa_fast.commands.main train CONFIG.
    """

    config: Annotated[Positional[Path | None], arg(metavar="CONFIG", help_behavior_hint="(optional)")] = None
    """A TOML file of these options."""


def from_file(arguments: Sequence[str]) -> Train | None:
    """The defaults that a TOML file among the arguments gives: the first argument, or one that ends in .toml."""
    flags = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Train) if field.type is bool}
    before = ""
    for argument in arguments:
        is_value = before.startswith("--") and "=" not in before and before not in flags
        if not argument.startswith("-") and not is_value and (not before or argument.endswith(".toml")):
            return dataclasses.replace(read_config(Path(argument), Train), config=Path(argument))
        before = argument
    return None


def run(config: Train) -> int:
    """0 once trained. Raises UsageError, and what `jepa_fast.training.loop.train` raises."""
    try:
        from jepa_fast.training.loop import TerminatedError, train

        result = train(config, step_factory=_eager_step() if config.engine == "eager" else None)
    except TerminatedError:
        return TERMINATED
    except ModuleNotFoundError as error:
        if error.name not in _DATA_PACKAGES:
            raise
        raise UsageError(
            f"{error.name} is not installed; `pip install 'jepa-fast[data]'` brings it"
        ) from None
    if not result.losses:
        print(f"nothing left to do: {result.checkpoint} is the end of the run")
        return 0
    skipped = f", {result.skipped_steps} steps skipped" if result.skipped_steps else ""
    print(
        f"{len(result.losses)} steps in {result.seconds:.1f} s, {result.images_per_second:.1f} images/s, "
        f"loss {result.losses[0]:.4f} -> {result.losses[-1]:.4f}{skipped}, checkpoint: {result.checkpoint}"
    )
    return 0


def _eager_step() -> "StepFactory":
    from jepa_fast.bench.baselines.ijepa import EagerIJEPAStep

    return EagerIJEPAStep
