"""Opt-in: the code bases themselves, from a checkout that an environment variable names.

    JEPA_FAST_IJEPA_CHECKOUT    facebookresearch/ijepa
    JEPA_FAST_JEPA_CHECKOUT     facebookresearch/jepa
    JEPA_FAST_VJEPA2_CHECKOUT   facebookresearch/vjepa2 (needs timm and einops)
    JEPA_FAST_EB_JEPA_CHECKOUT  facebookresearch/eb_jepa
    JEPA_FAST_LEJEPA_CHECKOUT   rbalestr-lab/lejepa

Each runs in a process of its own, since several of them are called `src`. The diffs of docs/accelerate are applied to
copies of the first three.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "accelerate"
DIFF_LINES = 20

PRELUDE = """
import copy, sys
sys.path.insert(0, sys.argv[1])
import torch
from jepa_fast import optimize_
from jepa_fast.accelerate import patch_functions_

def same(before, after, tolerance):
    assert (after - before).abs().max() <= tolerance * before.abs().max(), (after - before).abs().max()

def compare(modules, call):
    fast = copy.deepcopy(modules)
    for module in fast:
        report = optimize_(module)
        assert report.replaced and not report.left_alone, str(report)
    found = []
    for these in (modules, fast):
        torch.manual_seed(0)
        out = call(*these)
        parameters = [p for module in these for p in module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(out.square().mean(), parameters, allow_unused=True)
        found.append((out, [g for g in gradients if g is not None]))
    same(found[0][0], found[1][0], 1e-5)
    scale = max(g.abs().max() for g in found[0][1])
    for before, after in zip(found[0][1], found[1][1], strict=True):
        assert (after - before).abs().max() <= 1e-5 * scale

x = torch.randn(2, 3, 64, 64)
clip = torch.randn(2, 3, 4, 64, 64)
ids = torch.stack([torch.randperm(32) for _ in range(2)])
"""
SCRIPTS = {
    "IJEPA": """
import src.models.vision_transformer as models
encoder = models.vit_tiny(img_size=[64], patch_size=16)
predictor = models.vit_predictor(num_patches=16, embed_dim=192, predictor_embed_dim=96, depth=2, num_heads=3)
ids = ids % 16
masks = [ids[:, :6]], [ids[:, 6:9], ids[:, 9:12]]
compare([encoder, predictor], lambda e, p: p(e(x, masks[0]), *masks))
""",
    "JEPA": """
import src.models.vision_transformer as models
import src.models.predictor as predictors
encoder = models.vit_tiny(img_size=64, num_frames=4, uniform_power=True)
predictor = predictors.vit_predictor(img_size=64, num_frames=4, embed_dim=192, predictor_embed_dim=96, depth=2,
    num_heads=3, use_mask_tokens=True, zero_init_mask_tokens=False)

def call(e, p):
    z = e(clip, masks=ids[:, :10])
    return p(z, z, [ids[:, :10]], [ids[:, 10:20]])

compare([encoder, predictor], call)
""",
    "VJEPA2": """
import src.models.vision_transformer as models
import src.models.predictor as predictors
import src.models.ac_predictor as action
options = dict(img_size=(64, 64), num_frames=4, embed_dim=96, depth=2, num_heads=3, use_rope=True, qkv_bias=True)
encoder = models.VisionTransformer(**options)
predictor = predictors.vit_predictor(predictor_embed_dim=96, use_mask_tokens=True, zero_init_mask_tokens=False,
    **{k: v for k, v in options.items() if k != "qkv_bias"})
compare([encoder, predictor], lambda e, p: p(e(clip, masks=[ids[:, :10]]), [ids[:, :10]], [ids[:, 10:20]]))
z, actions, states = torch.randn(2, 48, 96), torch.randn(2, 3, 7), torch.randn(2, 3, 7)

def make():
    torch.manual_seed(0)
    return action.vit_ac_predictor(img_size=(64, 64), num_frames=8, embed_dim=96, predictor_embed_dim=96, depth=2,
        num_heads=3)

dense = make()
compare([dense], lambda a: a(z, actions, states))
assert len(patch_functions_().replaced) == 1
rule = make()
assert not isinstance(rule.attn_mask, torch.Tensor)
before = dense(z, actions, states)
same(before, rule(z, actions, states), 1e-5)
optimize_(rule)
same(before, rule(z, actions, states), 1e-5)
""",
    "EB_JEPA": """
from eb_jepa import losses
a, b = torch.randn(2, 32, 16).unbind()
for loss in (losses.VICRegLoss(1.0, 80.0), losses.BCS()):
    fast = copy.deepcopy(loss)
    assert not optimize_(fast).left_alone
    for key, value in loss(a, b).items():
        same(value, fast_value := copy.deepcopy(fast)(a, b)[key], 1e-5)
""",
    "LEJEPA": """
from lejepa.multivariate.slicing import SlicingUnivariateTest
from lejepa.univariate.epps_pulley import EppsPulley
a = torch.randn(3, 32, 16)
loss = SlicingUnivariateTest(EppsPulley(), num_slices=64)
fast = copy.deepcopy(loss)
assert optimize_(fast).replaced
for _ in range(3):
    same(loss(a), fast(a), 1e-5)
""",
}


def checkout(name: str) -> str:
    variable = f"JEPA_FAST_{name}_CHECKOUT"
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no checkout")
    return folder


def run(script: str, *arguments: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert found.returncode == 0, found.stderr[-3000:]


@pytest.mark.parametrize("name", SCRIPTS)
def test_checkout(name: str) -> None:
    run(PRELUDE + SCRIPTS[name], checkout(name))


# The functions that are nested in main(), and the teacher's update, taken out of both files and called.
NESTED = """
import ast, copy, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
import torch.nn.functional as F
import jepa_fast
from src.masks.utils import apply_masks
from src.utils.tensors import repeat_interleave_batch

class AllReduce:
    apply = staticmethod(lambda x: x)

def nested(folder):
    tree = ast.parse(Path(folder, PATH).read_text())
    parts = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in ("forward_target", "loss_fn")]
    assert len(parts) == 2
    update = [n for n in ast.walk(tree) if isinstance(n, ast.With) and "target_encoder.parameters()" in ast.unparse(n)]
    compiled = [compile(ast.Module(body, type_ignores=[]), PATH, "exec") for body in (parts, update[-1:])]
    assert any(isinstance(n, ast.Call) and ast.unparse(n.func) == "jepa_fast.optimize_" for n in ast.walk(tree)) == (
        folder == sys.argv[2]
    )
    return compiled

torch.manual_seed(0)
encoder, teacher = torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)
ids = torch.stack([torch.randperm(16) for _ in range(3)])
masks = [ids[:, :4], ids[:, 4:8]]
found = []
for folder in sys.argv[1:3]:
    functions, update = nested(folder)
    names = {**globals(), "target_encoder": copy.deepcopy(teacher), "loss_exp": 1.0, "m": 0.9}
    names["momentum_scheduler"] = iter([0.9])
    call(functions, names)
    exec(update, names)
    found.append((names["loss"].detach(), *names["gradients"], *names["target_encoder"].parameters()))
for before, after in zip(*found, strict=True):
    assert before.shape == after.shape
    assert (after - before).abs().max() <= 1e-6 * before.abs().max() + 1e-9, (before, after)
assert not torch.equal(found[0][-1], teacher.bias)
"""
CALLS = {
    "IJEPA": """
import torch
PATH = "src/train.py"

def call(functions, names):
    names.update(imgs=torch.arange(240.0).view(3, 16, 5).cos(), masks_enc=[ids[:, 8:], ids[:, 9:]], masks_pred=masks)
    exec(functions, names)
    z = torch.arange(240.0).view(12, 4, 5).sin().requires_grad_()
    names["loss"] = names["loss_fn"](z, names["forward_target"]())
    names["gradients"] = torch.autograd.grad(names["loss"], z)
""",
    "JEPA": """
import torch
PATH = "app/vjepa/train.py"

def call(functions, names):
    names.update(masks_pred=masks)
    exec(functions, names)
    z = torch.arange(120.0).view(2, 3, 4, 5).sin().requires_grad_()
    h = names["forward_target"](torch.arange(240.0).view(3, 16, 5).cos())
    assert isinstance(h, list) and len(h) == len(masks)  # the predictor's wrapper goes through both lists
    names["loss"] = names["loss_fn"](list(z), h)
    names["gradients"] = torch.autograd.grad(names["loss"], z)
""",
    "VJEPA2": """
import torch
PATH = "app/vjepa/train.py"

class Several(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, clips):
        return [self.network(clip) for clip in clips]

def call(functions, names):
    names["target_encoder"] = Several(names["target_encoder"])
    names.update(masks_pred=[masks, masks[:1]])
    exec(functions, names)
    z = torch.arange(180.0).view(3, 3, 4, 5).sin().requires_grad_()
    h = names["forward_target"]([torch.arange(240.0).view(3, 16, 5).cos(), torch.ones(3, 16, 5).cumsum(1)])
    names["loss"] = names["loss_fn"]([[z[0], z[1]], [z[2]]], h)
    names["gradients"] = torch.autograd.grad(names["loss"], z)
""",
}


def documented_diff(name: str) -> str:
    page = (DOCS / f"{name.lower()}.md").read_text()
    (diff,) = re.findall(r"```diff\n(.*?)```", page, re.DOTALL)
    return diff


@pytest.mark.parametrize("name", CALLS)
def test_documented_diff_is_short(name: str) -> None:
    changed = re.findall(r"^(?:\+(?!\+\+ )|-(?!-- )).*$", documented_diff(name), re.MULTILINE)
    assert 0 < len(changed) <= DIFF_LINES


@pytest.mark.parametrize("name", CALLS)
def test_documented_diff_applies(name: str, tmp_path: Path) -> None:
    """And loss, gradient and teacher are those of the published lines."""
    folder, copied = checkout(name), tmp_path / "copy"
    shutil.copytree(folder, copied, ignore=shutil.ignore_patterns(".git"))
    applied = subprocess.run(
        ["git", "apply", "-"],
        input=documented_diff(name),
        cwd=copied,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert applied.returncode == 0, applied.stderr
    run(CALLS[name] + NESTED, folder, str(copied))
