"""Opt-in: the code bases themselves, from a checkout that an environment variable names.

    JEPA_FAST_IJEPA_CHECKOUT    facebookresearch/ijepa
    JEPA_FAST_JEPA_CHECKOUT     facebookresearch/jepa
    JEPA_FAST_VJEPA2_CHECKOUT   facebookresearch/vjepa2 (needs timm and einops)
    JEPA_FAST_EB_JEPA_CHECKOUT  facebookresearch/eb_jepa
    JEPA_FAST_LEJEPA_CHECKOUT   rbalestr-lab/lejepa

Each runs in a process of its own, since several of them are called `src`.
"""

import os
import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("name", SCRIPTS)
def test_checkout(name: str) -> None:
    variable = f"JEPA_FAST_{name}_CHECKOUT"
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no checkout")
    command = [sys.executable, "-W", "ignore", "-c", PRELUDE + SCRIPTS[name], folder]
    found = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert found.returncode == 0, found.stderr[-3000:]
