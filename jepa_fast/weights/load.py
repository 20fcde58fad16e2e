"""Weights of a model from and to files of any of the known layouts."""

from collections.abc import Callable, Mapping
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
_MODELS = ("ijepa.", "vjepa2.")  # before the keys of transformers' models with a head
_OTHER_HEADS = ("pooler.", "classifier.")  # of transformers' models, beside what we read
_OF_TRAINING = ("optimizer.", "counter")  # of a checkpoint, beside the model


class Naming(NamedTuple):
    """How a file names a part: with `prefix` before names that are converted from and to ours."""

    prefix: str
    to_ours: Callable[[State], State]
    to_theirs: Callable[[State], State]


class Parts(NamedTuple):
    """A file's state dicts, None for what it does not hold; under our keys, or its own where `naming` has the part."""

    layout: str
    encoder: State | None
    teacher: State | None
    predictor: State | None
    rest: State
    naming: Mapping[str, Naming] = {}


def load(model: nn.Module, path: str | Path, *, teacher: nn.Module | None = None) -> str:
    """Reads weights into `model`, in place, whatever the file's layout; dtype and device of the model stay.

    Read are: the published files of I-JEPA, V-JEPA, V-JEPA 2, 2-AC and 2.1 (`encoder`, `predictor`, `target_encoder` or
    `ema_encoder`, with `module.` and `backbone.` before the keys); transformers' IJepa (both generations) and VJEPA2;
    our own, and the checkpoints of `jepa-fast train`. Files are PyTorch's, unpickled with `weights_only=True`, or
    safetensors.

    Args:
        model: `IJEPA`, `VJEPA`, `VJEPA2AC` or `LeJEPA`, made by `models.create`; not on the meta device.
        path: the file.
        teacher: receives the target encoder, and `model.encoder` the context encoder, to continue a training; both
            receive the only one of a file that has one. None: `model.encoder` receives the target encoder, which
            evaluations use, or the only one there is. The file of V-JEPA 2-AC is taken from `encoder`, as published.

    Returns:
        "jepa_fast", "published" or "transformers". A file without a predictor leaves that of the model as it is.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: one line that names the file's first key that is missing, unexpected, complex or of another shape.
            Nothing is written to the model then.
        ValueError: the model is on the meta device.
    """
    path = Path(path)
    for name, module in (("model", model), ("teacher", teacher)):
        if module is not None and any(tensor.is_meta for tensor in module.state_dict().values()):
            raise ValueError(f"{name}: expected one with memory for weights, got one on the meta device")
    parts = _recognise(read(path), path)
    student, target = parts.encoder, parts.teacher
    if teacher is None:
        first, second = (student, target) if isinstance(model, VJEPA2AC) else (target, student)
        student = second if first is None else first
    else:
        student, target = target if student is None else student, student if target is None else target
    pairs: list[tuple[str, nn.Module, State | None]] = []
    if isinstance(model, LeJEPA):
        whole = {f"encoder.{key}": value for key, value in (student or {}).items()} | parts.rest
        pairs.append(("model", model, whole))
    else:
        if student is None:
            raise WeightsError(f"{path}: expected an encoder, got none")
        pairs.append(("encoder", _part(model, "encoder"), student))
        if parts.predictor is not None:
            pairs.append(("predictor", _part(model, "predictor"), parts.predictor))
    if teacher is not None:
        pairs.append(("teacher", teacher, target))
    names = {**parts.naming, "teacher": parts.naming.get("encoder")}
    checked = [
        (module, _checked(path, name, module, state, names.get(name))) for name, module, state in pairs
    ]
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


def _recognise(content: dict[Any, Any], path: Path) -> Parts:
    if any(isinstance(content.get(key), Mapping) for key in ("encoder", *_TEACHERS)):
        teacher = next((key for key in _TEACHERS if content.get(key) is not None), _TEACHERS[0])
        student, target, ahead = (_strip(path, content, key) for key in ("encoder", teacher, "predictor"))
        return Parts("published", student, target, ahead, {})
    tensors = {
        key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not tensors:
        got = sorted(map(str, content))[:5]
        raise WeightsError(f"{path}: expected state dicts of encoder and predictor, got {got}")
    before = next((prefix for prefix in _MODELS if any(key.startswith(prefix) for key in tensors)), "")
    kept = {
        short: value
        for key, value in tensors.items()
        if not (short := key.removeprefix(before)).startswith(_OTHER_HEADS)
    }
    if any(key.startswith("encoder.embeddings.") for key in kept):
        naming = {
            "encoder": Naming(f"{before}encoder.", hf.VJEPA2_ENCODER.to_ours, hf.VJEPA2_ENCODER.to_theirs),
            "predictor": Naming(
                f"{before}predictor.",
                lambda state: hf.unstack_mask_tokens(hf.VJEPA2_PREDICTOR.to_ours(state)),
                lambda state: hf.VJEPA2_PREDICTOR.to_theirs(hf.stack_mask_tokens(state)),
            ),
        }
        ahead = _under("predictor.", kept) or None
        return Parts("transformers", _under("encoder.", kept), None, ahead, {}, naming)
    if any(key.startswith("embeddings.") for key in kept):
        names = hf.IJEPA_5 if any(key.startswith("layers.") for key in kept) else hf.IJEPA
        naming = {"encoder": Naming(before, names.to_ours, names.to_theirs)}
        return Parts("transformers", kept, None, None, {}, naming)
    trained = _under("training.", tensors)  # a checkpoint of `jepa-fast train`
    tensors = {key: value for key, value in trained.items() if not key.startswith(_OF_TRAINING)} or tensors
    student, target, ahead = (
        _under(prefix, tensors) or None for prefix in ("encoder.", "teacher.", "predictor.")
    )
    known = ("encoder.", "teacher.", "predictor.")
    rest = {key: value for key, value in tensors.items() if not key.startswith(known)}
    if student is None and target is None:
        raise WeightsError(f"{path}: expected keys of an encoder, got {sorted(tensors)[:3]}")
    return Parts("jepa_fast", student, target, ahead, rest)


def _strip(path: Path, content: Mapping[Any, Any], part: str) -> State | None:
    """A state dict of a published file, without what stands before its keys."""
    state = content.get(part)
    if state is None:
        return None
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path}: {part}: expected a state dict, got {type(state).__name__}")
    out = {}
    for key, value in state.items():
        if not isinstance(key, str):
            raise WeightsError(f"{path}: {part}: expected names as keys, got {key!r}")
        while key.startswith(_PREFIXES):
            key = key.split(".", 1)[1]
        out[key] = value
    return out


def _under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _checked(
    path: Path, name: str, module: nn.Module, state: State | None, naming: Naming | None = None
) -> State:
    """`state` as `module` takes it; raises WeightsError with the first key that does not fit, as the file has it."""
    if state is None:
        raise WeightsError(f"{path}: {name}: expected its weights, got none")
    expected = module.state_dict()
    before = naming.prefix if naming else ""
    if naming:
        expected = naming.to_theirs(expected)
    state = dict(state)
    if "pos_embed" not in expected and hasattr(module, "blocks"):
        state.pop("pos_embed", None)  # in the files of V-JEPA 2, whose positions are rotary: it is not read
    for key, tensor in expected.items():
        if key not in state:
            raise WeightsError(f"{path}: {name}: missing key {before + key!r}, expected {list(tensor.shape)}")
        got = state[key]
        if not isinstance(got, Tensor) or got.shape != tensor.shape:
            shape = list(got.shape) if isinstance(got, Tensor) else type(got).__name__
            raise WeightsError(
                f"{path}: {name}: {before + key!r}: expected {list(tensor.shape)}, got {shape}"
            )
        if got.is_complex() and not tensor.is_complex():
            raise WeightsError(f"{path}: {name}: {before + key!r}: expected real numbers, got {got.dtype}")
    for key in state:
        if key not in expected:
            raise WeightsError(f"{path}: {name}: unexpected key {before + key!r}")
    return naming.to_ours(state) if naming else state


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
