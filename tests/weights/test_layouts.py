"""Files in the published layouts and those of transformers: read, written, and refused in one line."""

import argparse
import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa_fast import models
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.loop import train
from jepa_fast.weights import WeightsError, load, save

VIDEO: dict[str, Any] = {
    "image_size": 32, "frames": 4, "dim": 48, "depth": 4, "num_heads": 2, "mlp_dim": 96,
    "predictor_depth": 2, "predictor_dim": 48, "predictor_heads": 2,
}  # fmt: skip
IMAGE = {
    "image_size": 32, "dim": 48, "depth": 2, "num_heads": 2, "mlp_dim": 96, "predictor_depth": 2,
    "predictor_dim": 48,
}  # fmt: skip
ACTION = {key: value for key, value in VIDEO.items() if key not in ("frames", "depth")} | {"depth": 2}
SYSTEMS = {
    "ijepa_vitt8_128": IMAGE,
    "vjepa_vitl_224": VIDEO,
    "vjepa2_vitl_256": VIDEO,
    "vjepa21_vitg_256": VIDEO,
    "vjepa21_vitb_384": VIDEO | {"teacher_dim": 64},
    "vjepa2_ac_vitg": ACTION,
}


@pytest.fixture(scope="module", params=SYSTEMS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(name: str, seed: int) -> Any:
    torch.manual_seed(seed)
    model = models.create(name, **SYSTEMS[name])
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def published(model: Any, teacher: nn.Module, name: str) -> dict[str, Any]:
    """As the training code of the system saves it, written out here without our writer."""
    prefix = "module." if name.startswith(("ijepa", "vjepa2_ac")) else "module.backbone."

    def wrapped(module: nn.Module) -> dict[str, Tensor]:
        return {prefix + key: value for key, value in module.state_dict().items()}

    key = "ema_encoder" if name == "vjepa21_vitb_384" else "target_encoder"
    encoder = wrapped(model.encoder)
    if name.startswith("vjepa2_vit"):
        encoder["module.backbone.pos_embed"] = torch.zeros(1, 8, 48)  # unused, but in the files
    return {
        "encoder": encoder, "predictor": wrapped(model.predictor), key: wrapped(teacher),
        "opt": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "scaler": None, "epoch": 7, "loss": 0.5,
        "batch_size": 8, "world_size": 1, "lr": 1e-3,
    }  # fmt: skip


def test_published_file(name: str, tmp_path: Path) -> None:
    source, teacher = made(name, 0), made(name, 1).encoder
    path = tmp_path / "model.pth.tar"
    torch.save(published(source, teacher, name), path)
    evaluated = made(name, 2)
    assert load(evaluated, path) == "published"
    assert same(evaluated.predictor, source.predictor)
    assert same(evaluated.encoder, source.encoder if name == "vjepa2_ac_vitg" else teacher)

    trained, target = made(name, 3), made(name, 4).encoder
    load(trained, path, teacher=target)
    assert same(trained.encoder, source.encoder)
    assert same(target, teacher)


def test_published_layout_is_written_back(name: str, tmp_path: Path) -> None:
    source, teacher = made(name, 0), made(name, 1).encoder
    path = tmp_path / "out.pt"
    save(source, path, layout="published", teacher=teacher, extra={"epoch": 7})
    written = torch.load(path, weights_only=True)
    expected = published(source, teacher, name)
    assert written["epoch"] == 7
    for part in written.keys() - {"epoch"}:
        ours = {key for key in expected[part] if not key.endswith("pos_embed") or name[:7] != "vjepa2_"}
        assert written[part].keys() == ours
        assert all(torch.equal(written[part][key], expected[part][key]) for key in ours)


def test_own_layout(name: str, tmp_path: Path) -> None:
    source, teacher = made(name, 0), made(name, 1).encoder
    path = tmp_path / "own.safetensors"
    save(source, path, teacher=teacher)
    assert {key.split(".")[0] for key in load_file(path)} == {"encoder", "predictor", "teacher"}
    assert not list(tmp_path.glob("*.part"))
    other, target = made(name, 2), made(name, 3).encoder
    assert load(other, path, teacher=target) == "jepa_fast"
    assert same(other, source)
    assert same(target, teacher)


def test_lejepa_has_its_own(tmp_path: Path) -> None:
    sizes = {"image_size": 16, "dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64, "hidden_dim": 16}
    first, second = (models.create("lejepa_vits8_128", **sizes) for _ in range(2))
    save(first, tmp_path / "own.safetensors")
    load(second, tmp_path / "own.safetensors")
    assert same(first, second)
    with pytest.raises(ValueError, match="layout: LeJEPA has no published one"):
        save(first, tmp_path / "a.pt", layout="published")


def ijepa_names(state: dict[str, Tensor], generation: int) -> dict[str, Tensor]:
    """Of transformers, by hand."""
    out = {}
    for key, value in state.items():
        kind = key.rsplit(".", 1)[-1]
        if key == "pos_embed":
            out["embeddings.position_embeddings"] = value
        elif key.startswith("patch_embed"):
            out[f"embeddings.patch_embeddings.projection.{kind}"] = value
        elif key.startswith("norm."):
            out[f"layernorm.{kind}"] = value
        else:
            _, number, rest = key.split(".", 2)
            at = f"encoder.layer.{number}." if generation == 4 else f"layers.{number}."
            if "qkv" in rest:
                parts = ("query", "key", "value") if generation == 4 else ("q_proj", "k_proj", "v_proj")
                inner = "attention.attention." if generation == 4 else "attention."
                for part, rows in zip(parts, value.chunk(3), strict=True):
                    out[f"{at}{inner}{part}.{kind}"] = rows.contiguous()
            else:
                old = {
                    "norm1": "layernorm_before",
                    "norm2": "layernorm_after",
                    "attn.proj": "attention.output.dense",
                    "mlp.fc1": "intermediate.dense",
                    "mlp.fc2": "output.dense",
                }
                new = old | {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
                out[f"{at}{(old if generation == 4 else new)[rest.rsplit('.', 1)[0]]}.{kind}"] = value
    return out  # fmt: skip


@pytest.mark.parametrize("generation", [4, 5])
@pytest.mark.parametrize("prefix", ["", "ijepa."])
def test_transformers_ijepa(generation: int, prefix: str, tmp_path: Path) -> None:
    source, other = made("ijepa_vitt8_128", 0), made("ijepa_vitt8_128", 1)
    path = tmp_path / "model.safetensors"
    save_file({prefix + k: v for k, v in ijepa_names(source.encoder.state_dict(), generation).items()}, path)
    before = copy.deepcopy(other.predictor)
    assert load(other, path) == "transformers"
    assert same(other.encoder, source.encoder)
    assert same(other.predictor, before)
    save(source, path, layout="transformers")
    expected = ijepa_names(source.encoder.state_dict(), 4)
    written = load_file(path)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)


def broken(state: dict[str, Any], fault: str) -> dict[str, Any]:
    encoder = state["target_encoder"]
    if fault == "missing":
        del encoder["module.blocks.1.attn.qkv.weight"]
    elif fault == "unexpected":
        encoder["module.blocks.2.norm1.weight"] = torch.zeros(48)
    elif fault == "misshaped":
        encoder["module.norm.bias"] = torch.zeros(47)
    elif fault == "no encoder":
        state = {"predictor": state["predictor"]}
    elif fault == "predictor":
        state["predictor"]["module.extra"] = torch.zeros(1)
    return state


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "encoder: missing key 'blocks.1.attn.qkv.weight', expected [144, 48]"),
        ("unexpected", "encoder: unexpected key 'blocks.2.norm1.weight'"),
        ("misshaped", "encoder: 'norm.bias': expected [48], got [47]"),
        ("no encoder", "expected state dicts of encoder and predictor, got ['predictor']"),
        ("predictor", "predictor: unexpected key 'extra'"),
    ],
)
def test_the_first_fault_is_named_and_nothing_is_written(fault: str, message: str, tmp_path: Path) -> None:
    source, other = made("ijepa_vitt8_128", 0), made("ijepa_vitt8_128", 1)
    before = copy.deepcopy(other)
    path = tmp_path / "file.pth"
    torch.save(broken(published(source, source.encoder, "ijepa"), fault), path)
    with pytest.raises(WeightsError) as caught:
        load(other, path)
    assert str(caught.value) == f"{path}: {message}"
    assert same(other, before)


def test_missing_third_of_a_layer(tmp_path: Path) -> None:
    source = made("ijepa_vitt8_128", 0)
    state = ijepa_names(source.encoder.state_dict(), 5)
    del state["layers.1.attention.k_proj.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"encoder: missing key 'layers\.1\.attention\.k_proj\.bias'"):
        load(source, tmp_path / "model.safetensors")


class Malicious:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_what_is_no_file_of_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = made("ijepa_vitt8_128", 0)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(model, "absent.pt")
    Path("text.pt").write_text("not a checkpoint")
    Path("text.safetensors").write_text("not a checkpoint")
    with Path("pickle.pt").open("wb") as file:
        pickle.dump({"encoder": Malicious()}, file)
    torch.save({"encoder": Malicious()}, "object.pt")
    torch.save([torch.zeros(1)], "list.pt")
    torch.save({"encoder": {}, "args": argparse.Namespace(lr=1)}, "arguments.pt")
    for wrong, what in (("object.pt", "getattr"), ("arguments.pt", "argparse.Namespace")):
        with pytest.raises(WeightsError) as caught:
            load(model, wrong)
        assert str(caught.value) == f"{wrong}: holds more than tensors ({what}), which is not loaded"
    for wrong in ("text.pt", "text.safetensors", "pickle.pt", "list.pt"):
        with pytest.raises(WeightsError, match=f"^{wrong}: expected a (file|dict) of tensors") as caught:
            load(model, wrong)
        assert str(caught.value).isprintable()
        assert "weights_only" not in str(caught.value)
    assert not Path("executed").exists()


def test_wrong_requests(tmp_path: Path) -> None:
    model = made("vjepa_vitl_224", 0)
    with pytest.raises(ValueError, match=r"layout: expected one of .*, got 'hf'"):
        save(model, tmp_path / "a.safetensors", layout="hf")
    with pytest.raises(ValueError, match=r"path: expected a name that ends in .safetensors, got 'a.pt'"):
        save(model, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="transformers has I-JEPA's encoder and V-JEPA 2 alone, got VJEPA"):
        save(model, tmp_path / "a.safetensors", layout="transformers")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: {1: torch.ones(3)}, "expected state dicts of encoder and predictor, got ['1']"),
        (lambda state: {"encoder": {1: torch.ones(3)}}, "encoder: expected names as keys, got 1"),
        (lambda state: {"encoder": state, "predictor": [1]}, "predictor: expected a state dict, got list"),
        (
            lambda state: {"encoder": state, "target_encoder": "x"},
            "target_encoder: expected a state dict, got str",
        ),
        (
            lambda state: {"encoder": state | {"norm.bias": torch.zeros(48, dtype=torch.complex64)}},
            "encoder: 'norm.bias': expected real numbers, got torch.complex64",
        ),
    ],
)
def test_content_of_other_types_is_named(
    content: Callable[[dict[str, Tensor]], dict[Any, Any]], message: str, tmp_path: Path
) -> None:
    model = made("ijepa_vitt8_128", 0)
    path = tmp_path / "file.pt"
    torch.save(content(model.encoder.state_dict()), path)
    with pytest.raises(WeightsError) as caught:
        load(model, path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder.layer.0.attention.key.weight", None, "missing key {key}, expected [48, 48]"),
        ("encoder.layer.0.attention.key.weight", (48, 44), "{key}: expected [48, 48], got [48, 44]"),
        ("encoder.layer.1.norm2.bias", (3,), "{key}: expected [48], got [3]"),
        ("encoder.layer.9.norm1.weight", (48,), "unexpected key {key}"),
        (
            "predictor.embeddings.mask_tokens",
            (3, 1, 1, 48),
            "{key}: expected [10, 1, 1, 48], got [3, 1, 1, 48]",
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["", "vjepa2."])
def test_a_bad_key_of_transformers_is_named_as_the_file_has_it(
    key: str, value: tuple[int, ...] | None, message: str, prefix: str, tmp_path: Path
) -> None:
    model = made("vjepa2_vitl_256", 0)
    path = tmp_path / "model.safetensors"
    save(model, path, layout="transformers")
    state = {prefix + name: tensor for name, tensor in load_file(path).items()}
    if value is None:
        del state[prefix + key]
    else:
        state[prefix + key] = torch.zeros(value)
    save_file(state, path)
    with pytest.raises(WeightsError) as caught:
        load(model, path)
    part = key.split(".")[0]
    assert str(caught.value) == f"{path}: {part}: {message.format(key=repr(prefix + key))}"


@pytest.mark.parametrize("layout", ["jepa_fast", "transformers"])
def test_the_only_encoder_of_a_file_is_the_teacher_too(layout: str, tmp_path: Path) -> None:
    source, model, teacher = (made("vjepa2_vitl_256", seed) for seed in range(3))
    save(source, tmp_path / "model.safetensors", layout=layout)
    assert load(model, tmp_path / "model.safetensors", teacher=teacher.encoder) == layout
    assert same(model, source)
    assert same(teacher.encoder, source.encoder)


TRAINED: dict[str, dict[str, Any]] = {
    "ijepa_vitt8_128": IMAGE | {"image_size": 80},
    "vjepa2_vitl_256": VIDEO | {"image_size": 64},
    "vjepa21_vitg_256": VIDEO | {"image_size": 64},
    "lejepa_vits8_128": {
        "image_size": 32, "local_size": 16, "dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64, "hidden_dim": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("trained", TRAINED)
def test_a_checkpoint_of_training_is_read_and_exported(trained: str, tmp_path: Path) -> None:
    options = dict(TRAINED[trained])
    sizes = {name: options.pop(name) for name in ("image_size", "local_size", "frames") if name in options}
    config = TrainConfig(
        model=trained, model_options=options, device="cpu", batch_size=2, steps=1, output=tmp_path, local_views=1,
        **sizes,
    )  # fmt: skip
    checkpoint = train(config).checkpoint
    assert checkpoint is not None
    state = load_file(checkpoint)
    model = models.create(trained, **TRAINED[trained])
    assert load(model, checkpoint) == "jepa_fast"
    network = "encoder" if trained.startswith("lejepa") else "teacher"
    for key, value in model.state_dict().items():
        part, _, name = key.partition(".")
        assert torch.equal(value, state[f"training.{network if part == 'encoder' else part}.{name}"])
    save(model, tmp_path / "own.safetensors")
    if not trained.startswith("lejepa"):
        other, teacher = (models.create(trained, **TRAINED[trained]) for _ in range(2))
        load(other, checkpoint, teacher=teacher.encoder)
        encoder = other.encoder.state_dict()
        assert all(torch.equal(value, state[f"training.encoder.{key}"]) for key, value in encoder.items())
        assert same(teacher.encoder, model.encoder)
        save(model, tmp_path / "published.pt", layout="published")
        load(other, tmp_path / "published.pt")
        assert same(other, model)


def test_a_file_has_the_mode_that_the_umask_grants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(made("ijepa_vitt8_128", 0), tmp_path / "a.safetensors")
        save(made("ijepa_vitt8_128", 0), tmp_path / "a.pt", layout="published")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [0o640, 0o640]


@pytest.mark.parametrize(("name", "layout"), [("a.safetensors", "jepa_fast"), ("a.pt", "published")])
def test_where_no_file_can_be_written(name: str, layout: str, tmp_path: Path) -> None:
    model = made("ijepa_vitt8_128", 0)
    with pytest.raises(FileNotFoundError, match=f"{name}: there is no folder .*gone$"):
        save(model, tmp_path / "gone" / name, layout=layout)
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=f"{name} cannot be written: "):
        save(model, tmp_path / name, layout=layout)
    assert not list(tmp_path.glob("*.part"))


def test_a_model_without_memory_is_refused(tmp_path: Path) -> None:
    model, empty = made("ijepa_vitt8_128", 0), made("ijepa_vitt8_128", 0).to("meta")
    save(model, tmp_path / "a.safetensors", teacher=made("ijepa_vitt8_128", 1).encoder)
    with pytest.raises(ValueError, match="model: expected one with memory for weights, got one on the meta"):
        load(empty, tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match="teacher: expected one with memory for weights, got one on the meta"
    ):
        load(model, tmp_path / "a.safetensors", teacher=empty.encoder)
