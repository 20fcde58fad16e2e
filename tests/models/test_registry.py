"""Models by name: sizes, state dicts, initial weights, refusals."""

from pathlib import Path

import pytest
import torch
from torch import nn

from jepa_fast import models
from jepa_fast.models.table import table


def millions(module: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 1)


@pytest.mark.parametrize(
    ("name", "encoder", "predictor", "encoder_tensors", "predictor_tensors"),
    [
        ("ijepa_vith14", 630.8, 22.4, 389, 152),
        ("ijepa_vith16_448", 631.7, 22.6, 389, 152),
        ("ijepa_vitg16", 1011.4, 29.6, 485, 200),
        ("ijepa_vits8_128", 21.5, 11.0, 149, 80),
    ],
)
def test_published_sizes(
    name: str, encoder: float, predictor: float, encoder_tensors: int, predictor_tensors: int
) -> None:
    with torch.device("meta"):
        model = models.create(name)
    assert millions(model.encoder) == encoder
    assert millions(model.predictor) == predictor
    assert len(model.encoder.state_dict()) == encoder_tensors
    assert len(model.predictor.state_dict()) == predictor_tensors


# Millions of parameters of encoder and predictor, tensors of the predictor, tokens: as counted in the published code.
PUBLISHED = {
    "vjepa_vitl_224": (305.5, 22.7, None, 1568),
    "vjepa_vith_224": (633.7, 22.9, None, 1568),
    "vjepa_vith_384": (None, None, None, 4608),
    "vjepa2_vitl_256": (303.9, 22.1, 160, 2048),
    "vjepa2_vith_256": (631.6, 22.3, 160, 2048),
    "vjepa2_vitg_256": (1012.2, 22.4, 160, 2048),
    "vjepa2_vitg_256_64f": (1012.2, 22.4, 160, 8192),
    "vjepa2_vitg_384": (1012.2, 22.4, 160, 18432),
    "vjepa21_vitb_384": (86.8, 22.9, None, 18432),
    "vjepa21_vitl_384": (None, 23.0, None, 18432),
    "vjepa21_vitg_384": (1013.3, 55.4, None, 18432),
    "vjepa21_vitG_384": (1845.2, 59.4, None, 18432),
    "vjepa21_vitG_256": (1845.2, 59.4, None, 2048),
    "vjepa2_ac_vitg": (1012.2, 305.2, 300, 256),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    encoder, predictor, tensors, tokens = PUBLISHED[name]
    with torch.device("meta"):
        model = models.create(name)
    assert encoder in (None, millions(model.encoder))
    assert predictor in (None, millions(model.predictor))
    assert tensors in (None, len(model.predictor.state_dict()))
    assert model.encoder.num_patches == tokens


def test_table_in_the_documentation() -> None:
    """Made by `python -m jepa_fast.models.table > docs/models.md`."""
    assert (Path(__file__).parents[2] / "docs" / "models.md").read_text() == table()


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="got 'vjepa2_vitl256'; did you mean 'vjepa2_vitl_256'"):
        models.create("vjepa2_vitl256")


@pytest.mark.parametrize("name", models.names())
def test_every_name_can_be_made(name: str) -> None:
    with torch.device("meta"):
        model = models.create(name)
    size = model.config.image_size
    if name.startswith(("ijepa", "lejepa")):
        assert name.endswith(f"_{size}") == (size != 224)
        assert f"{model.config.patch_size}" in name
    elif name != "vjepa2_ac_vitg":
        assert f"_{size}" in name


def test_published_state_dict() -> None:
    model = models.create("ijepa_vitt8_128", depth=1, predictor_depth=1)

    def block(prefix: str, dim: int, hidden: int) -> dict[str, tuple[int, ...]]:
        layers = {
            "norm1": (dim,), "attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim),
            "norm2": (dim,), "mlp.fc1": (hidden, dim), "mlp.fc2": (dim, hidden),
        }  # fmt: skip
        shapes = {}
        for layer, shape in layers.items():
            shapes[f"{prefix}.{layer}.weight"] = shape
            shapes[f"{prefix}.{layer}.bias"] = shape[:1]
        return shapes

    assert {key: tuple(value.shape) for key, value in model.encoder.state_dict().items()} == {
        "pos_embed": (1, 256, 192),
        "patch_embed.proj.weight": (192, 3, 8, 8), "patch_embed.proj.bias": (192,),
        **block("blocks.0", 192, 768),
        "norm.weight": (192,), "norm.bias": (192,),
    }  # fmt: skip
    assert {key: tuple(value.shape) for key, value in model.predictor.state_dict().items()} == {
        "mask_token": (1, 1, 384), "predictor_pos_embed": (1, 256, 384),
        "predictor_embed.weight": (384, 192), "predictor_embed.bias": (384,),
        **block("predictor_blocks.0", 384, 1536),
        "predictor_norm.weight": (384,), "predictor_norm.bias": (384,),
        "predictor_proj.weight": (192, 384), "predictor_proj.bias": (192,),
    }  # fmt: skip


def test_initial_weights() -> None:
    """Standard deviation 0.02 in every layer: the published code undoes its scale by depth."""
    torch.manual_seed(0)
    model = models.create("ijepa_vitt8_128")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert name.endswith("pos_embed")
        elif parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.004, name
        else:
            constant = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert (parameter == constant).all(), name


def test_same_seed_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(models.create("ijepa_vitt8_128", depth=1, predictor_depth=1).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"name: expected one of .*ijepa_vith14.*ijepa_vitg16.*, got 'vit'"):
        models.create("vit")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 3}, "width: not a field of the configuration; accepted: image_size, patch_size"),
        ({"depth": 0}, "depth: expected an integer of at least 1, got 0"),
        ({"depth": 1.5}, "depth: expected an integer of at least 1, got 1.5"),
        ({"image_size": "96"}, "image_size: expected an integer of at least 1, got '96'"),
        ({"image_size": None}, "image_size: expected an integer of at least 1, got None"),
        ({"image_size": True}, "image_size: expected an integer of at least 1, got True"),
        ({"dept": 3}, "dept: not a field .*; did you mean 'depth'"),
        ({"image_size": 100}, "image_size: expected a multiple of patch_size = 8, got 100"),
        ({"num_heads": 5}, "num_heads: expected a divisor of dim = 192, got 5"),
        ({"dim": 198}, "dim: expected a positive multiple of 4, got 198"),
    ],
)
def test_wrong_overrides(overrides: dict[str, int], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        models.create("ijepa_vitt8_128", **overrides)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("lejepa_vits8_128", {"proj_dim": None}, "proj_dim: expected an integer of at least 1, got None"),
        (
            "lejepa_vits8_128",
            {"local_size": 0},
            "local_size: expected an integer of at least 1 or None, got 0",
        ),
        (
            "lejepa_vits8_128",
            {"local_size": 60},
            "local_size: expected a multiple of patch_size = 8, at most .* got 60",
        ),
        ("lejepa_vits8_128", {"local_size": 136}, "local_size: .*, at most image_size = 128, got 136"),
        (
            "vjepa2_vitl_256",
            {"positions": "foo"},
            "positions: expected one of sincos, tiled, interleaved, got 'foo'",
        ),
        ("vjepa2_vitl_256", {"hierarchical": 1}, "hierarchical: expected True or False, got 1"),
        ("vjepa2_vitl_256", {"levels": 4}, "levels: expected 1 of a model that is not hierarchical, got 4"),
        ("vjepa21_vitg_256", {"levels": 2}, "levels: expected 1 or 4, got 2"),
        ("vjepa21_vitg_256", {"depth": 6}, "depth: expected a multiple of 4 of a hierarchical model, got 6"),
        ("vjepa2_vitl_256", {"dim": 36, "num_heads": 4}, "num_heads: expected .* even .*, got 4 heads of 9"),
        ("vjepa2_vitl_256", {"predictor_dim": 60}, "predictor_heads: expected .* even .*, got 12 heads of 5"),
        ("vjepa2_ac_vitg", {"predictor_dim": 80}, "predictor_heads: expected .* even .*, got 16 heads of 5"),
    ],
)
def test_fields_that_do_not_fit(name: str, overrides: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        models.create(name, **overrides)
