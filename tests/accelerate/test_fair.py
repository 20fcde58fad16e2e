"""Stand-ins for facebookresearch/ijepa, jepa, vjepa2 and timm, patched against unpatched."""

import copy

import accelerate_standins as standins
import pytest
import torch
from torch import Tensor, nn

from jepa_fast import optimize_, restore_
from jepa_fast.accelerate.frame_causal import FrameCausal

DIM, HEADS, SIDE = 48, 2, 4
RANDOM = torch.Generator().manual_seed(3)
IDS = torch.stack([torch.randperm(2 * SIDE**2, generator=RANDOM) for _ in range(2)])
X = torch.randn(2, 9, DIM, generator=RANDOM)
CLIP = torch.randn(2, 2 * SIDE**2, DIM, generator=RANDOM)
FRAMES = torch.randn(2, 3 * SIDE**2, DIM, generator=RANDOM)
ACTIONS, STATES = torch.randn(2, 2, 3, 7, generator=RANDOM)


def of(module: nn.Module, *tensors: Tensor) -> list[Tensor]:
    dtype = next(module.parameters()).dtype
    return [tensor.to(dtype) for tensor in tensors]


CASES = {
    "ijepa block": (lambda: standins.IJEPA.Block(DIM, HEADS), lambda m: m(*of(m, X))),
    "ijepa predictor": (
        lambda: standins.IJEPA.VisionTransformerPredictor(16, 32, DIM, HEADS),
        lambda m: m(*of(m, X[..., :32]), [IDS[:, :9] % 16], [IDS[:, 3:7] % 16, IDS[:, 7:11] % 16]),
    ),
    "vjepa2 block, ids": (
        lambda: standins.VJEPA2.Block(DIM, HEADS, SIDE),
        lambda m: m(*of(m, X), mask=IDS[:, :9]),
    ),
    "vjepa2 block, grid": (
        lambda: standins.VJEPA2.Block(DIM, HEADS, SIDE),
        lambda m: m(*of(m, CLIP), T=2, H_patches=2, W_patches=8),
    ),
    "vjepa2 block, no grid": (lambda: standins.VJEPA2.Block(DIM, HEADS, SIDE), lambda m: m(*of(m, CLIP))),
    "vjepa2 predictor": (
        lambda: standins.VJEPA2.VisionTransformerPredictor(SIDE, 2, 32, DIM, HEADS),
        lambda m: m(*of(m, X[..., :32]), [IDS[:, :9]], [IDS[:, 9:20]], mask_index=0),
    ),
    "vjepa2 ac predictor": (
        lambda: standins.VJEPA2.VisionTransformerPredictorAC(SIDE, 5, DIM, DIM, HEADS),
        lambda m: m(*of(m, FRAMES, ACTIONS, STATES)),
    ),
    "vjepa2.1 block": (
        lambda: standins.VJEPA21.Block(DIM, HEADS, SIDE),
        lambda m: m(*of(m, CLIP), T=2, H_patches=SIDE, W_patches=SIDE),
    ),
    "vjepa2.1 block, ids": (
        lambda: standins.VJEPA21.Block(DIM, HEADS, SIDE),
        lambda m: m(*of(m, X), mask=IDS[:, :9]),
    ),
    "timm block": (lambda: standins.Timm.Block(DIM, HEADS), lambda m: m(*of(m, X))),
    "timm block, causal": (lambda: standins.Timm.Block(DIM, HEADS), lambda m: m(*of(m, X), is_causal=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients(within_budget, name: str) -> None:
    torch.manual_seed(0)
    build, call = CASES[name]
    theirs = build()
    ours = copy.deepcopy(theirs)
    report = optimize_(ours)
    assert report.left_alone == ()
    assert report.replaced
    within_budget(theirs, ours, call)
    within_budget(theirs, ours, call, torch.bfloat16)


@pytest.mark.parametrize("name", ["ijepa predictor", "vjepa2 predictor", "vjepa2 ac predictor"])
def test_training_steps(name: str) -> None:
    torch.manual_seed(0)
    build, call = CASES[name]
    theirs = build()
    ours = copy.deepcopy(theirs)
    optimize_(ours)
    curves = []
    for model in (theirs, ours):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        curves.append([])
        for _ in range(20):
            loss = (call(model) - 0.5).abs().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curves[-1].append(loss.item())
    expected, found = map(torch.tensor, curves)
    assert expected[-1] < expected[0]
    assert (found - expected).abs().max() <= 1e-4 * expected[0]


@pytest.mark.parametrize(
    "name", ["ijepa predictor", "vjepa2 block, ids", "vjepa2 ac predictor", "timm block"]
)
def test_compiled(name: str) -> None:
    torch.manual_seed(0)
    build, call = CASES[name]
    model = build().eval()
    expected = call(model)
    optimize_(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        assert (call(compiled) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_attention_weights_are_there_for_who_asks() -> None:
    block = standins.IJEPA.Block(DIM, HEADS)
    expected = block(X, return_attention=True)
    optimize_(block)
    assert torch.equal(block(X, return_attention=True), expected)


def test_causal_mask_without_its_entries() -> None:
    torch.manual_seed(0)
    model = CASES["vjepa2 ac predictor"][0]()
    dense = model.attn_mask
    optimize_(model)
    assert isinstance(model.attn_mask, FrameCausal)
    restore_(model)
    assert torch.equal(model.attn_mask, dense)


def test_causal_mask_in_an_attention_that_was_left_alone() -> None:
    torch.manual_seed(0)
    build, call = CASES["vjepa2 ac predictor"]
    model = build()
    expected = call(model)
    optimize_(model, filter_fn=lambda module, name: "Attention" not in type(module).__name__)
    assert (call(model) - expected).abs().max() <= 1e-5


def test_another_mask_is_left_alone() -> None:
    model = CASES["vjepa2 ac predictor"][0]()
    model.attn_mask = model.attn_mask.tril()
    report = optimize_(model)
    (entry,) = [entry for entry in report.left_alone if entry.name == ""]
    assert "attn_mask" in entry.outcome


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: standins.Timm.Attention(DIM, HEADS, qk_norm=True), "unexpected submodule q_norm"),
        (lambda: standins.MLP(DIM, 96, act=nn.GELU(approximate="tanh")), "expected the exact GELU"),
        (lambda: standins.MLP(DIM, 96, act=nn.SiLU()), "expected the exact GELU"),
    ],
)
def test_what_is_something_else_is_left_alone(module, reason: str) -> None:
    made = module()
    before = type(made)
    (entry,) = [entry for entry in optimize_(made).entries if entry.name == ""]
    assert reason in entry.outcome
    assert type(made) is before


def test_dropout_in_training_runs_the_published_code() -> None:
    mlp = standins.MLP(DIM, 96, drop=0.5)
    same = copy.deepcopy(mlp)
    optimize_(mlp)
    torch.manual_seed(0)
    found = mlp(X)
    torch.manual_seed(0)
    assert torch.equal(found, same(X))
    assert (mlp.eval()(X) - same.eval()(X)).abs().max() < 1e-5


def test_a_forward_that_does_something_else_is_left_alone() -> None:
    """The same name, attributes and signature, and another formula."""

    class Attention(standins.Timm.Attention):
        def forward(self, x, attn_mask=None, is_causal=False):
            return super().forward(x, attn_mask, is_causal) + 0.001 * x

    (entry,) = optimize_(Attention(DIM, HEADS)).entries
    assert "computes something else" in entry.outcome
