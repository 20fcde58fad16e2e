"""`LeWM.rollout` by the last step of each window, against the published rollout."""

import importlib
import sys
import types
from collections.abc import Iterator

import accelerate_standins as standins
import pytest
import torch
from torch import Tensor, nn

from jepa_fast.accelerate import patch_functions_, restore_functions_
from jepa_fast.accelerate import rollout as rollout_module

NAME = "stable_worldmodel.wm.lewm.lewm"
RANDOM = torch.Generator().manual_seed(0)
ACTIONS = torch.randn(2, 7, 5, 4, generator=RANDOM)


class LeWM(standins.LeWM):
    """A class of its own, whose method may be replaced."""

    rollout = standins.LeWM.rollout


@pytest.fixture
def library(monkeypatch) -> Iterator[types.ModuleType]:
    module = types.ModuleType(NAME)
    module.LeWM = LeWM
    monkeypatch.setitem(sys.modules, NAME, module)
    yield module
    restore_functions_()
    assert LeWM.rollout is standins.LeWM.rollout


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return LeWM().eval()


def rollout(model: nn.Module, frames: int, history: int | None = None) -> tuple[Tensor, Tensor]:
    """Predictions, and the gradient of their cost in the actions, as planners by gradient take it."""
    emb = torch.randn(2, 1, frames, 12, generator=torch.Generator().manual_seed(1)).expand(2, 7, -1, -1)
    actions = ACTIONS.clone().requires_grad_()
    found = model.rollout({"emb": emb}, actions, history)["predicted_emb"]
    (gradient,) = torch.autograd.grad(found[:, :, -1].square().sum(), actions)
    return found.detach(), gradient


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def outcome() -> str:
    (entry,) = [e for e in patch_functions_().entries if e.name.endswith("LeWM.rollout")]
    return entry.outcome


@pytest.mark.parametrize(("frames", "history"), [(1, None), (2, None), (3, None), (1, 2)])
def test_predictions_and_gradients(library, model, monkeypatch, frames: int, history: int | None) -> None:
    expected = rollout(model, frames, history)
    assert outcome() == "the last step of each window"
    calls: list[int] = []
    monkeypatch.setattr(LeWM, "predict", count(LeWM.predict, calls))
    for _ in range(2):
        same(rollout(model, frames, history), expected)
        assert calls == [1, 2, 3]  # those of the proof, one for each length of a window
    assert "predict" not in model.__dict__


def count(function, calls: list[int]):
    def counted(self, emb, act_emb):
        calls.append(emb.shape[1])
        return function(self, emb, act_emb)

    return counted


class Changed(standins.LeWM.ConditionalBlock):
    """Another order of its six parts."""

    def forward(self, x, c):
        gate, a, b, last_gate, d, e = self.adaLN_modulation(c).chunk(6, -1)
        x = x + gate * self.attn(self.norm1(x) * (1 + b) + a)
        return x + last_gate * self.mlp(self.norm2(x) * (1 + e) + d)


def change(model: nn.Module) -> None:
    model.predictor.transformer.layers[1].__class__ = Changed


class Renamed(standins.LeWM.Transformer):
    def forward(self, x, c):
        for block in self.layers:
            x = block(x, c)
        return self.output_proj(self.normalize(x))


def rename(model: nn.Module) -> None:
    transformer = model.predictor.transformer
    transformer.normalize = transformer.norm
    del transformer.norm
    transformer.__class__ = Renamed


def hook(model: nn.Module) -> None:
    model.predictor.register_forward_hook(lambda module, arguments, found: found * 2)


def train(model: nn.Module) -> None:
    """The batch statistics of the projection are those of all steps."""
    model.pred_proj.train()


def test_closed_gates_prove_nothing(library, model) -> None:
    """Of a new model, whose blocks pass on what they are given, whatever the order of their parts."""
    change(model)
    for block in model.predictor.transformer.layers:
        nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(block.adaLN_modulation[1].bias)
    assert outcome() == "the last step of each window"
    rollout(model, 1)
    for block in model.predictor.transformer.layers:
        nn.init.normal_(block.adaLN_modulation[1].weight)
    found = rollout(model, 1)
    restore_functions_()
    assert torch.equal(found[0], rollout(model, 1)[0])


@pytest.mark.parametrize("how", [change, rename, hook, train])
def test_what_is_not_served_runs_the_published_code(library, model, how) -> None:
    how(model)
    expected = rollout(model, 1)
    outcome()
    found = rollout(model, 1)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_a_changed_signature_is_reported(library, monkeypatch) -> None:
    monkeypatch.setattr(LeWM, "rollout", lambda self, info, plan: info)
    assert outcome().startswith("left alone: expected LeWM.rollout(info, action_sequence, history_size)")
    monkeypatch.delattr(LeWM, "rollout")
    monkeypatch.setattr(library, "LeWM", nn.Module)
    assert outcome() == "left alone: expected function LeWM.rollout"
    monkeypatch.undo()


def test_stable_worldmodel_itself() -> None:
    published = pytest.importorskip("stable_worldmodel.wm.lewm", exc_type=ImportError)
    parts = importlib.import_module("stable_worldmodel.wm.lewm.module")
    torch.manual_seed(0)
    predictor = parts.Predictor(
        num_frames=3, depth=2, heads=2, mlp_dim=24, input_dim=12, hidden_dim=12, dim_head=8
    )
    for block in predictor.transformer.layers:
        nn.init.normal_(block.adaLN_modulation[-1].weight)
    projection = parts.MLP(12, 24, 12, nn.BatchNorm1d)
    model = published.LeWM(nn.Identity(), predictor, parts.Embedder(4, 4, 12), pred_proj=projection).eval()
    info = {"pixels": torch.zeros(2, 7, 1, 1), "emb": torch.randn(2, 7, 1, 12)}
    expected = model.rollout(dict(info), ACTIONS)["predicted_emb"]
    try:
        assert outcome() == "the last step of each window"
        found = model.rollout(dict(info), ACTIONS)["predicted_emb"]
        assert rollout_module._proven[model]
    finally:
        restore_functions_()
    same((found,), (expected,))
