"""A training configuration in a TOML file: the fields of `TrainConfig` by their names."""

import difflib
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from jepa_fast.training.config import CHOICES, TrainConfig

Config = TypeVar("Config", bound=TrainConfig)


def read_config(path: Path, form: type[Config]) -> Config:
    """`form` with the values in the file at `path`. Raises ValueError or FileNotFoundError, naming the file."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"config: no such file: {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"config: {path} cannot be read as TOML: {error}") from error
    accepted = {field.name: field.type for field in fields(TrainConfig)}
    for name in values:
        if name not in accepted:
            near = difflib.get_close_matches(name, accepted, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"config: {path}: expected one of {', '.join(accepted)}, got {name!r}; did you mean {near!r}?"
            )
    converted: dict[str, Any] = {}
    for name, value in values.items():
        try:
            # What a choice may be, the configuration itself says better.
            kind = str if name in CHOICES else accepted[name]
            converted[name] = msgspec.convert(value, kind, dec_hook=_path)
        except msgspec.ValidationError as error:
            raise ValueError(f"{name}: {path}: {error}") from None
    try:
        return form(**converted)
    except ValueError as error:
        raise ValueError(f"{error} (in {path})") from None


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise msgspec.ValidationError(f"Expected `str`, got `{type(value).__name__}`")
