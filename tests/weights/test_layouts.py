"""Files in the published layouts and those of transformers: read, written, and refused in one line."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa_fast import models
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
    with pytest.raises(WeightsError, match=r"encoder: missing key 'blocks\.1\.attn\.qkv\.bias'"):
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
    for wrong in ("text.pt", "text.safetensors", "pickle.pt", "object.pt", "list.pt"):
        with pytest.raises(WeightsError, match=f"^{wrong}: expected a (file|dict) of tensors") as caught:
            load(model, wrong)
        assert "\n" not in str(caught.value)
    assert not Path("executed").exists()


def test_wrong_requests(tmp_path: Path) -> None:
    model = made("vjepa_vitl_224", 0)
    with pytest.raises(ValueError, match=r"layout: expected one of .*, got 'hf'"):
        save(model, tmp_path / "a.safetensors", layout="hf")
    with pytest.raises(ValueError, match=r"path: expected a name that ends in .safetensors, got 'a.pt'"):
        save(model, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="transformers has I-JEPA's encoder and V-JEPA 2 alone, got VJEPA"):
        save(model, tmp_path / "a.safetensors", layout="transformers")
