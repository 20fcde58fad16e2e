"""Losses and functions of libraries: stand-ins, and the libraries where they are installed."""

import copy
import sys
import types
from collections.abc import Iterator

import accelerate_standin_losses as standin_losses
import pytest
import torch
from torch import Tensor, nn

from jepa_fast import OptimizeConfig, optimize_, restore_
from jepa_fast.accelerate import patch_functions_, restore_functions_

RANDOM = torch.Generator().manual_seed(0)
A, B = torch.randn(2, 24, 12, generator=RANDOM)
VIEWS = torch.randn(3, 16, 12, generator=RANDOM)
STEPS = 0.7 * torch.randn(16, 5, 12, generator=RANDOM)
ACTIONS = torch.randn(2, 16, 4, 3, generator=RANDOM)


def total(value) -> Tensor:
    return sum(value.values()) if isinstance(value, dict) else value


def compare(theirs: nn.Module, *arguments: Tensor, left_alone: str | None = None) -> None:
    """Loss and gradients of three calls in a row, with the same random generators; and back again."""
    ours = copy.deepcopy(theirs)
    report = optimize_(ours)
    outcome = "; ".join(entry.outcome for entry in report.entries if entry.name == "")
    if left_alone is not None:
        assert left_alone in outcome
        return
    assert report.left_alone == (), outcome
    for call in range(3):
        found = []
        for module in (theirs, ours):
            leaves = [argument.clone().requires_grad_() for argument in arguments]
            torch.manual_seed(call)
            loss = total(module(*leaves))
            found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
        for expected, actual in zip(*found, strict=True):
            assert (actual - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert len(restore_(ours).entries) == len(report.replaced)
    assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (standin_losses.LightlySIGReg.SIGReg(), (VIEWS,)),
        (standin_losses.LightlySIGReg.SIGReg(knots=9, t_max=2.0, num_vectors=32), (A,)),
        (standin_losses.LeWMSIGReg.SIGReg(), (VIEWS,)),
        (standin_losses.SlicingUnivariateTest(), (VIEWS,)),
        (standin_losses.SlicingUnivariateTest("sum"), (VIEWS,)),
        (standin_losses.SlicedEppsPulley(), (A,)),
        (standin_losses.BCS(), (A, B)),
        (standin_losses.LightlyVICReg.VICRegLoss(), (A, B)),
        (standin_losses.LightlyBarlow.BarlowTwinsLoss(), (A, B)),
        (standin_losses.HingeStdLoss(), (A * 0.5,)),
        (standin_losses.CovarianceLoss(), (A,)),
        (standin_losses.VCReg(), (STEPS,)),
        (standin_losses.VCReg(1e-2), (STEPS.transpose(0, 1).contiguous(),)),
        (standin_losses.PLDMLoss(), (STEPS, ACTIONS[0], ACTIONS[1])),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_losses(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    compare(module, *arguments)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (standin_losses.SlicingUnivariateTest(None), "attribute reduction"),
        (standin_losses.SlicingUnivariateTest(clip_value=0.1), "attribute clip_value"),
        (standin_losses.HingeStdLoss(2.0), "attribute std_margin"),
    ],
)
def test_settings_that_are_not_served(module: nn.Module, reason: str) -> None:
    compare(module, left_alone=reason)


def test_each_term_under_autocast() -> None:
    """The terms of `VCReg` one by one, of bfloat16 embeddings: a sum would hide the small ones."""
    theirs, ours = standin_losses.VCReg(), standin_losses.VCReg()
    assert optimize_(ours).left_alone == ()
    z = STEPS.bfloat16()
    exact = theirs(z.double())
    with torch.autocast("cpu", torch.bfloat16):
        eager, found = theirs(z), ours(z)
    assert found.keys() == eager.keys()
    for name, value in exact.items():
        assert (found[name] - value).abs() <= 2 * (eager[name] - value).abs() + 1e-6 * value, name


@pytest.mark.filterwarnings("ignore:var")
def test_one_step_runs_the_published_code() -> None:
    """Whose variance over time is then not a number."""
    ours = standin_losses.VCReg()
    optimize_(ours)
    assert ours(STEPS[:, :1])["std_t_loss"].isnan()


def test_other_knots_are_left_alone() -> None:
    module = standin_losses.LightlySIGReg.SIGReg()
    module.t.mul_(1.1)
    compare(module, left_alone="trapezoid rule")


def test_corrected_is_another_adapter() -> None:
    module = standin_losses.SlicedEppsPulley()
    (entry, *_) = optimize_(module, OptimizeConfig(corrected=True)).entries
    assert entry.replacement == "sigreg_loss of the whole batch"


@pytest.fixture
def library() -> Iterator[types.ModuleType]:
    """A library of the documented name with the documented function, and a script that imported it by name."""
    names = ("lightly", "lightly.models", "lightly.models.utils", "somebodys_script")
    before = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = types.ModuleType(name)

    def update_momentum(model, model_ema, m):
        with torch.no_grad():
            for online, average in zip(model.parameters(), model_ema.parameters(), strict=True):
                average.mul_(m).add_(online, alpha=1 - m)

    sys.modules["lightly.models.utils"].update_momentum = update_momentum
    sys.modules["somebodys_script"].update_momentum = update_momentum
    yield sys.modules["lightly.models.utils"]
    restore_functions_()
    for name, module in before.items():
        if module is None:
            del sys.modules[name]
        else:
            sys.modules[name] = module


def test_functions_are_replaced_wherever_they_were_imported(library) -> None:
    published = library.update_momentum
    online, average = nn.Linear(7, 5), nn.Linear(7, 5)
    expected = copy.deepcopy(average)
    published(online, expected, 0.9)
    (entry,) = [e for e in patch_functions_().entries if e.name.endswith("update_momentum")]
    assert entry.replacement == "ema_update_"
    assert library.update_momentum is not published
    assert sys.modules["somebodys_script"].update_momentum is library.update_momentum
    patched = library.update_momentum
    patch_functions_()
    assert library.update_momentum is patched
    library.update_momentum(online, average, 0.9)
    assert (average.weight - expected.weight).abs().max() < 1e-6
    with pytest.raises(ValueError, match=r"zip|argument"):
        library.update_momentum(online, nn.Sequential(nn.Linear(7, 5), nn.Linear(2, 2)), 0.9)
    restore_functions_()
    assert library.update_momentum is published
    assert sys.modules["somebodys_script"].update_momentum is published


def test_renamed_functions_are_reported(library) -> None:
    library.update_momentum = lambda online, ema, tau: None
    (entry,) = [e for e in patch_functions_().entries if e.name.endswith("update_momentum")]
    assert entry.outcome.startswith("left alone: expected update_momentum(model, model_ema, m)")
    del library.update_momentum
    (entry,) = [e for e in patch_functions_().entries if e.name.endswith("update_momentum")]
    assert entry.outcome == "left alone: expected function update_momentum"


def test_mask_distance() -> None:
    from jepa_fast.accelerate.library_functions import mask_distance

    ids = torch.stack([torch.randperm(3 * 32 * 32, generator=RANDOM)[:60] for _ in range(2)])
    context, target = ids[:, :40], ids[:, 40:]
    places = torch.stack([ids // 1024, ids // 32 % 32, ids % 32], -1).double()
    expected = (places[:, :40, None] - places[:, None, 40:]).norm(dim=-1).amin(-1)
    distance = mask_distance(lambda *_: None)
    ((found,),) = distance([[target]], [[context]], 32, False)
    assert (found - expected.sqrt()).abs().max() < 1e-6
    ((found,),) = distance([[target]], [[context]], 32, True)
    assert (found - (expected / 2).sqrt()).abs().max() < 1e-6


def test_lightly_itself() -> None:
    loss = pytest.importorskip("lightly.loss", exc_type=ImportError)
    compare(loss.SIGReg(), A)
    compare(loss.VICRegLoss(), A, B)
    compare(loss.BarlowTwinsLoss(), A, B)
    whole, same = loss.LeJEPALoss(), loss.LeJEPALoss()
    assert optimize_(same).replaced
    found = []
    for module in (whole, same):
        torch.manual_seed(0)
        found.append(module(local_proj=VIEWS, global_proj=VIEWS[:2] + 1))
    assert (found[0] - found[1]).abs() <= 1e-5 * found[0].abs()


def test_timm_itself(within_budget) -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=0, init_values=0.1)
    ours = copy.deepcopy(theirs)
    assert optimize_(ours).left_alone == ()
    pixels = torch.randn(2, 3, 64, 64, generator=RANDOM)
    within_budget(theirs, ours, lambda m: m(pixels.to(next(m.parameters()).dtype)))
