"""`jepa-fast train`: a model on images or videos."""

import dataclasses
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args, get_origin, get_type_hints

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
    come before it. Some fields of its model_options are changed by --model-options depth 6 dim 192.
    Rates and schedules default to those published with I-JEPA, for batches of 2048 images.
    Ctrl-C and SIGTERM write a checkpoint and exit with code 130 or 143; --resume latest continues from it, bit for bit.
    On several devices: torchrun --nproc-per-node 8 -m jepa_fast.commands.main train CONFIG.
    """

    config: Annotated[Positional[Path | None], arg(metavar="CONFIG", help_behavior_hint="(optional)")] = None
    """A TOML file of these options."""

    @staticmethod
    def arguments(argv: Sequence[str]) -> list[str]:
        """Without --model-options, which `from_file` reads: tyro takes CONFIG for one of its fields."""
        return _model_options(argv)[0]


def from_file(arguments: Sequence[str]) -> Train | None:
    """The defaults that CONFIG and --model-options among the arguments give; None without either."""
    others, changes = _model_options(arguments)
    path = _config(others)
    if path is None and not changes:
        return None
    given = Train() if path is None else dataclasses.replace(read_config(path, Train), config=path)
    return dataclasses.replace(given, model_options=given.model_options | changes)


def _config(arguments: Sequence[str]) -> Path | None:
    """The first argument that is neither an option nor a value of one."""
    values = {
        name: 0 if hint is bool else len(get_args(hint)) if get_origin(hint) is tuple else 1
        for name, hint in get_type_hints(Train).items()
    }
    left = 0
    for argument in arguments:
        if argument.startswith("--"):
            name, has_value, _ = argument[2:].partition("=")
            left = values.get(name.replace("-", "_"), 1) - bool(has_value)
        elif left > 0:
            left -= 1
        elif not argument.startswith("-"):
            return Path(argument)
    return None


def _model_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """The arguments without --model-options FIELD NUMBER ... (or --model-options.FIELD NUMBER), and what these change.

    One argument alone after the pairs is CONFIG. Raises UsageError for anything else.
    """
    others: list[str] = []
    changes: dict[str, int] = {}
    rest = deque(arguments)
    while rest:
        argument = rest.popleft()
        found = re.fullmatch(r"--model[-_]options(?:\.(\w+))?(?:=(.*))?", argument)
        if found is None:
            others.append(argument)
            continue
        words = [word for word in found.groups() if word]
        most = 2 if found[1] else len(arguments)
        while rest and len(words) < most and not rest[0].startswith("--"):
            words.append(rest.popleft())
        if len(words) % 2 and len(words) > 1:
            rest.appendleft(words.pop())
        pairs = list(zip(words[::2], words[1::2], strict=False))
        if not pairs or not all(re.fullmatch(r"-?\d+", number) for _, number in pairs):
            got = " ".join(words) or "nothing"
            raise UsageError(
                f"--model-options: expected FIELD NUMBER ..., such as depth 6 dim 192, got {got}"
            )
        changes |= {field.replace("-", "_"): int(number) for field, number in pairs}
    return others, changes


def run(config: Train) -> int:
    """0 once trained. Raises UsageError, and what `jepa_fast.training.loop.train` raises."""
    try:
        from jepa_fast.training.allocator import keep_freed_memory
        from jepa_fast.training.loop import TerminatedError, train
        from jepa_fast.training.setup import choose_device

        if choose_device(config.device).type == "cpu":
            keep_freed_memory()
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
