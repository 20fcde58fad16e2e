"""Small transformers models with random weights, patched against unpatched."""

import copy
import warnings

import pytest
import torch
from torch import nn

from jepa_fast import OptimizeConfig, optimize_, restore_
from jepa_fast.accelerate import register_attention

transformers = pytest.importorskip("transformers")

TOKENS = 2 * 4 * 4


def vjepa2(**options) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        crop_size=64,
        frames_per_clip=4,
        hidden_size=48,
        num_attention_heads=2,
        num_hidden_layers=2,
        pred_hidden_size=48,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=2,
        pred_zero_init_mask_tokens=False,
        initializer_range=0.2,
        **options,
    )
    return transformers.VJEPA2Model(config).train()


def vit(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        initializer_range=0.2,
        **({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if name != "DINOv3ViT" else {}),
    )
    return getattr(transformers, f"{name}Model")(config).train()


CLIPS = torch.randn(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.stack([torch.randperm(TOKENS, generator=torch.Generator().manual_seed(s)) for s in range(2)])
CONTEXT, TARGET = [IDS[:, :11]], [IDS[:, 11:20]]


def predict(model: nn.Module) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    found = model(CLIPS.to(dtype), context_mask=CONTEXT, target_mask=TARGET)
    return found.predictor_output.last_hidden_state


def encode(model: nn.Module) -> torch.Tensor:
    return model(IMAGES.to(next(model.parameters()).dtype)).last_hidden_state


VITS = ("IJepa", "ViT", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT")
CASES = [("VJEPA2", predict), *((name, encode) for name in VITS)]


def build(name: str) -> nn.Module:
    return vjepa2() if name == "VJEPA2" else vit(name)


@pytest.mark.parametrize(("name", "call"), CASES, ids=[name for name, _ in CASES])
def test_forward_and_gradients(within_budget, name: str, call) -> None:
    theirs = build(name)
    ours = copy.deepcopy(theirs)
    report = optimize_(ours)
    assert report.left_alone == ()
    kinds = {entry.replacement for entry in report.replaced}
    assert {"gelu_mlp", "add_layer_norm"} <= kinds
    assert any("masked_attention" in str(kind) for kind in kinds)
    within_budget(theirs, ours, call)
    within_budget(theirs, ours, call, torch.bfloat16)


def test_compiled(within_budget) -> None:
    theirs = vjepa2()
    ours = copy.deepcopy(theirs)
    optimize_(ours)
    compiled = torch.compile(ours.encoder, backend="aot_eager", fullgraph=True)
    theirs_encoder = theirs.encoder
    compiled(CLIPS)
    expected = theirs_encoder(CLIPS).last_hidden_state
    found = compiled(CLIPS).last_hidden_state
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    found.sum().backward()
    optimized_later = copy.deepcopy(theirs.encoder)
    before = torch.compile(optimized_later, backend="aot_eager")
    before(CLIPS)
    optimize_(before)
    assert (before(CLIPS).last_hidden_state - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_several_masks_run_the_published_predictor() -> None:
    """Whatever it makes of them, an error too."""
    model = vjepa2()
    ours = copy.deepcopy(model)
    optimize_(ours)
    hidden = torch.randn(2, TOKENS, 48)
    for predictor in (model.predictor, ours.predictor):
        with pytest.raises(RuntimeError):
            predictor(hidden, CONTEXT * 2, TARGET * 2)


def test_warns_when_the_predictor_runs_for_nothing() -> None:
    model = vjepa2()
    optimize_(model)
    with pytest.warns(UserWarning, match="skip_predictor"):
        model(CLIPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(CLIPS, context_mask=CONTEXT, target_mask=TARGET)
    restore_(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(CLIPS)


def test_eager_attention_is_left_alone() -> None:
    model = vjepa2()
    model.set_attn_implementation("eager")
    report = optimize_(model, OptimizeConfig(mlp=False, layer_norm=False, predictor=False, warning=False))
    reasons = {reason for entry in report.left_alone for reason in entry.reasons}
    assert any('"eager" attention' in reason for reason in reasons)
    later = vjepa2()
    optimize_(later)
    later.set_attn_implementation("eager")
    attention = later.encoder.layer[0].attention
    assert attention(torch.randn(2, TOKENS, 48))[1] is not None


@pytest.mark.parametrize(("name", "call"), CASES, ids=[name for name, _ in CASES])
def test_attention_interface(within_budget, name: str, call) -> None:
    register_attention()
    theirs = build(name)
    ours = copy.deepcopy(theirs)
    ours.set_attn_implementation("jepa_fast")
    assert ours.config._attn_implementation == "jepa_fast"
    within_budget(theirs, ours, call)


def test_attention_interface_masks() -> None:
    """Boolean masks of padding, causality, and what the interface hands on."""
    from jepa_fast.accelerate.transformers import attention_forward

    sdpa = transformers.AttentionInterface()["sdpa"]
    module = nn.Module()
    module.is_causal, module.training = False, True
    query, key, value = (torch.randn(2, heads, 9, 16) for heads in (4, 2, 2))
    module.num_key_value_groups = 2
    seen = torch.rand(2, 1, 9, 9) < 0.6
    seen[..., 0] = True
    additive = torch.zeros(2, 1, 9, 9).masked_fill(~seen, -torch.inf)
    for mask, causal in ((None, False), (None, True), (seen, False), (additive, False)):
        found, weights = attention_forward(module, query, key, value, mask, scaling=0.2, is_causal=causal)
        expected, _ = sdpa(module, query, key, value, mask, scaling=0.2, is_causal=causal)
        assert weights is None
        assert (found - expected).abs().max() < 1e-5
    with pytest.raises(ValueError, match="softcap"):
        attention_forward(module, query, key, value, None, softcap=30.0)
