"""Weights of a model from and to files of any of the known layouts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from jepa_fast.models import IJEPA, VJEPA, VJEPA2AC, LeJEPA

from . import transformers as hf
from .files import SAFETENSORS, WeightsError, read, write

LAYOUTS = ("jepa_fast", "published", "transformers")
State = dict[str, Tensor]

# The encoders of a published file: the teacher is what evaluations use.
_TEACHERS = ("target_encoder", "ema_encoder")
_PREFIXES = ("module.", "backbone.")
_OTHER_HEADS = ("pooler.", "classifier.")  # of transformers' models, beside what we read


class Parts(NamedTuple):
    """A file's state dicts under our keys; None for what it does not hold."""

    layout: str
    encoder: State | None
    teacher: State | None
    predictor: State | None
    rest: State


def load(model: nn.Module, path: str | Path, *, teacher: nn.Module | None = None) -> str:
    """Reads weights into `model`, in place, whatever the file's layout; dtype and device of the model stay.

    Read are: the published files of I-JEPA, V-JEPA, V-JEPA 2, 2-AC and 2.1 (`encoder`, `predictor`, `target_encoder` or
    `ema_encoder`, with `module.` and `backbone.` before the keys); transformers' IJepa (both generations) and VJEPA2;
    and our own. Files are PyTorch's, unpickled with `weights_only=True`, or safetensors.

    Args:
        model: `IJEPA`, `VJEPA`, `VJEPA2AC` or `LeJEPA`, made by `models.create`.
        path: the file.
        teacher: receives the target encoder, and `model.encoder` the context encoder, to continue a training. None:
            `model.encoder` receives the target encoder, which evaluations use, or the only one there is. The file of
            V-JEPA 2-AC is taken from `encoder`, as published.

    Returns:
        "jepa_fast", "published" or "transformers". A file without a predictor leaves that of the model as it is.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: one line that names the first key that is missing, unexpected or of another shape. Nothing is
            written to the model then.
    """
    path = Path(path)
    parts = _recognise(read(path), path)
    student, target = parts.encoder, parts.teacher
    if teacher is None:
        first, second = (student, target) if isinstance(model, VJEPA2AC) else (target, student)
        student = second if first is None else first
    pairs: list[tuple[str, nn.Module, State | None]] = []
    if isinstance(model, LeJEPA):
        whole = {f"encoder.{key}": value for key, value in (student or {}).items()} | parts.rest
        pairs.append(("model", model, whole))
    else:
        if student is None and teacher is None:
            raise WeightsError(f"{path}: expected an encoder, got none")
        pairs.append(("encoder", _part(model, "encoder"), student))
        if parts.predictor is not None:
            pairs.append(("predictor", _part(model, "predictor"), parts.predictor))
    if teacher is not None:
        pairs.append(("teacher", teacher, target))
    checked = [(module, _checked(path, name, module, state)) for name, module, state in pairs]
    for module, state in checked:
        module.load_state_dict(state)
    return parts.layout


def save(
    model: nn.Module,
    path: str | Path,
    *,
    layout: str = "jepa_fast",
    teacher: nn.Module | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes the weights of `model`; the file is whole or not there.

    Args:
        layout: "jepa_fast", safetensors with our keys and `encoder.`, `predictor.`, `teacher.` before them;
            "published", the file of the model's own codebase, by `torch.save`; "transformers", what the
            `save_pretrained` of `IJepaModel` or `VJEPA2Model` writes, safetensors (the teacher's encoder if given).
        teacher: the target encoder; None has the file hold `model.encoder` in its place.
        extra: further entries of a published file, such as `epoch`.

    Raises:
        ValueError: unknown layout, or one that the model has no place in; a safetensors layout without that suffix.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout != "published" and path.suffix != SAFETENSORS:
        raise ValueError(f"path: expected a name that ends in {SAFETENSORS}, got {path.name!r}")
    if layout == "jepa_fast":
        state = {key: value.detach() for key, value in model.state_dict().items()}
        if teacher is not None:
            state |= {f"teacher.{key}": value.detach() for key, value in teacher.state_dict().items()}
        write(path, state)
    elif layout == "transformers":
        write(path, _to_transformers(model, teacher))
    else:
        write(path, {**_to_published(model, teacher), **(extra or {})})


def _part(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name)


def _recognise(content: dict[str, Any], path: Path) -> Parts:
    if any(isinstance(content.get(key), Mapping) for key in ("encoder", *_TEACHERS)):
        teacher = next((content[key] for key in _TEACHERS if content.get(key) is not None), None)
        student, target, ahead = (
            None if state is None else _strip(state)
            for state in (content.get("encoder"), teacher, content.get("predictor"))
        )
        return Parts("published", student, target, ahead, {})
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"{path}: expected state dicts of encoder and predictor, got {sorted(content)[:5]}"
        )
    for prefix in ("ijepa.", "vjepa2."):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    if any(key.startswith("encoder.embeddings.") for key in tensors):
        kept = {key: value for key, value in tensors.items() if not key.startswith(_OTHER_HEADS)}
        encoder = hf.VJEPA2_ENCODER.to_ours(_under("encoder.", kept))
        predictor = _under("predictor.", kept)
        ours = hf.unstack_mask_tokens(hf.VJEPA2_PREDICTOR.to_ours(predictor)) if predictor else None
        return Parts("transformers", encoder, None, ours, {})
    if any(key.startswith("embeddings.") for key in tensors):
        kept = {key: value for key, value in tensors.items() if not key.startswith(_OTHER_HEADS)}
        names = hf.IJEPA_5 if any(key.startswith("layers.") for key in kept) else hf.IJEPA
        return Parts("transformers", names.to_ours(kept), None, None, {})
    student, target, ahead = (
        _under(prefix, tensors) or None for prefix in ("encoder.", "teacher.", "predictor.")
    )
    known = ("encoder.", "teacher.", "predictor.")
    rest = {key: value for key, value in tensors.items() if not key.startswith(known)}
    if student is None and target is None:
        raise WeightsError(f"{path}: expected keys of an encoder, got {sorted(tensors)[:3]}")
    return Parts("jepa_fast", student, target, ahead, rest)


def _strip(state: Mapping[str, Tensor]) -> State:
    out = {}
    for key, value in state.items():
        while key.startswith(_PREFIXES):
            key = key.split(".", 1)[1]
        out[key] = value
    return out


def _under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _checked(path: Path, name: str, module: nn.Module, state: State | None) -> State:
    """`state` as `module` takes it; raises WeightsError with the first key that does not fit."""
    if state is None:
        raise WeightsError(f"{path}: {name}: expected its weights, got none")
    expected = module.state_dict()
    state = dict(state)
    if "pos_embed" not in expected and hasattr(module, "blocks"):
        state.pop("pos_embed", None)  # in the files of V-JEPA 2, whose positions are rotary: it is not read
    for key, tensor in expected.items():
        if key not in state:
            raise WeightsError(f"{path}: {name}: missing key {key!r}, expected {list(tensor.shape)}")
        got = state[key]
        if not isinstance(got, Tensor) or got.shape != tensor.shape:
            shape = list(got.shape) if isinstance(got, Tensor) else type(got).__name__
            raise WeightsError(f"{path}: {name}: {key!r}: expected {list(tensor.shape)}, got {shape}")
    for key in state:
        if key not in expected:
            raise WeightsError(f"{path}: {name}: unexpected key {key!r}")
    return state


def _to_transformers(model: nn.Module, teacher: nn.Module | None) -> State:
    if isinstance(model, IJEPA):
        return hf.IJEPA.to_theirs(_detached(teacher or model.encoder))
    if isinstance(model, VJEPA) and model.config.positions == "tiled":
        encoder = hf.VJEPA2_ENCODER.to_theirs(_detached(teacher or model.encoder))
        predictor = hf.VJEPA2_PREDICTOR.to_theirs(hf.stack_mask_tokens(_detached(model.predictor)))
        return {f"encoder.{key}": value for key, value in encoder.items()} | {
            f"predictor.{key}": value for key, value in predictor.items()
        }
    raise ValueError(
        f"layout: transformers has I-JEPA's encoder and V-JEPA 2 alone, got {type(model).__name__}"
    )


def _to_published(model: nn.Module, teacher: nn.Module | None) -> dict[str, Any]:
    if isinstance(model, LeJEPA):
        raise ValueError("layout: LeJEPA has no published one")
    encoder, predictor = _part(model, "encoder"), _part(model, "predictor")
    prefix = "module." if isinstance(model, IJEPA) else "module.backbone."
    if isinstance(model, VJEPA2AC):
        prefix = "module."
    name = "target_encoder"
    if isinstance(model, VJEPA) and model.config.teacher_dim is not None:
        name = "ema_encoder"

    def prefixed(module: nn.Module) -> State:
        return {prefix + key: value for key, value in _detached(module).items()}

    return {
        "encoder": prefixed(encoder),
        "predictor": prefixed(predictor),
        name: prefixed(teacher or encoder),
    }


def _detached(module: nn.Module) -> State:
    return {key: value.detach() for key, value in module.state_dict().items()}
