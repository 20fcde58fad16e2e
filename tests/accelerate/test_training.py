"""Twenty training steps, patched against unpatched: eager, under autocast, and under torch.compile.

The losses are no further from those in float64 than twice the distance of the published code, and a few units in the
last place of float32. Libraries that are not installed are skipped; the stand-ins for their modules train in any case.
"""

import copy
import functools
from collections.abc import Callable

import accelerate_standin_losses as standin_losses
import accelerate_standins as standins
import pytest
import torch
from torch import Tensor, nn

from jepa_fast import optimize_

STEPS = 20
MODES = ("eager", "autocast", "compiled")
RANDOM = torch.Generator().manual_seed(0)
CLIPS = torch.randn(2, 4, 3, 64, 64, generator=RANDOM)
IMAGES = torch.randn(2, 3, 32, 32, generator=RANDOM)
TOKENS = torch.randn(2, 9, 48, generator=RANDOM)
IDS = torch.stack([torch.randperm(32, generator=RANDOM) for _ in range(2)])
CONTEXT, TARGET = [IDS[:, :11]], [IDS[:, 11:20]]
VIEWS = torch.randn(2, 24, 16, generator=RANDOM)
CLIP_VIEWS = torch.randn(16, 5, 16, generator=RANDOM)

Step = Callable[[nn.Module], Tensor]


def curve(model: nn.Module, step: Step, autocast: bool = False) -> Tensor:
    torch.manual_seed(0)
    # Adam would scale up the rounding of gradients that are zero in exact arithmetic, such as those of key biases.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = step(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def exact_curve(model: nn.Module, step: Step) -> Tensor:
    """In float64, with the random directions that the published code draws in float32."""
    drawn = torch.randn

    def randn(*size: int, dtype: torch.dtype | None = None, **options: object) -> Tensor:
        return drawn(*size, dtype=torch.float32, **options).double()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", randn)
        torch.set_default_dtype(torch.float64)
        try:
            return curve(copy.deepcopy(model).double(), step)
        finally:
            torch.set_default_dtype(torch.float32)


def within_budget(found: Tensor, eager: Tensor, exact: Tensor) -> None:
    assert exact[-1] < exact[0]
    ulp = torch.finfo(torch.float32).eps
    theirs, mine = ((losses - exact).square().mean().sqrt() for losses in (eager, found))
    assert mine <= 2 * theirs + 4 * ulp * exact[0]


def trains_alike(model: nn.Module, step: Step, mode: str) -> None:
    """step: of a model, which torch.compile may have wrapped, the loss of a batch in the dtype of the parameters."""
    torch._dynamo.reset()
    ours = copy.deepcopy(model)
    report = optimize_(ours)
    assert report.replaced
    assert not report.left_alone, str(report)
    exact = exact_curve(model, step)
    eager = curve(copy.deepcopy(model), step, mode == "autocast")
    if mode == "compiled":
        ours = torch.compile(ours, backend="aot_eager")
    within_budget(curve(ours, step, mode == "autocast"), eager, exact)


def cast(x: Tensor, model: nn.Module) -> Tensor:
    return x.to(next(model.parameters()).dtype)


def distance(found: Tensor) -> Tensor:
    """From a fixed random target; a constant one would be as far from every LayerNorm."""
    target = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    return (found - target.to(found.dtype)).square().mean()


def vjepa2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    parts = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.VJEPA2Config(
        crop_size=64,
        frames_per_clip=4,
        **parts,
        **{f"pred_{name}": value for name, value in parts.items()},
        pred_zero_init_mask_tokens=False,
        initializer_range=0.2,
    )
    return transformers.VJEPA2Model(config)


def predict(model: nn.Module) -> Tensor:
    output = model(cast(CLIPS, model), context_mask=CONTEXT, target_mask=TARGET).predictor_output
    return (output.last_hidden_state - output.target_hidden_state.detach()).abs().mean()


def vit(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        initializer_range=0.2,
        **({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if name != "DINOv3ViT" else {}),
    )
    return getattr(transformers, f"{name}Model")(config)


def encode(model: nn.Module) -> Tensor:
    return distance(model(cast(IMAGES, model)).last_hidden_state)


def timm_vit() -> nn.Module:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=48,
        num_heads=2,
        depth=1,
        num_classes=0,
        global_pool="",
    )


def pixels(model: nn.Module) -> Tensor:
    return distance(model(cast(IMAGES, model)))


def tokens(model: nn.Module) -> Tensor:
    return distance(model(cast(TOKENS, model)))


def timm_standin() -> nn.Module:
    block = standins.Timm.Block(48, 2)
    block.drop_path2 = nn.Identity()
    return nn.Sequential(block, nn.Linear(48, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], Step]] = {
    "VJEPA2": (vjepa2, predict),
    **{
        name: (functools.partial(vit, name), encode)
        for name in ("IJepa", "ViT", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT")
    },
    "timm": (timm_vit, pixels),
    "timm stand-in": (timm_standin, tokens),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, mode: str) -> None:
    build, step = MODELS[name]
    torch.manual_seed(0)
    trains_alike(build().train(), step, mode)


class Criterion(nn.Module):
    """A projector and a loss against collapse, without which it would have nothing to learn."""

    def __init__(self, loss: nn.Module, *views: Tensor) -> None:
        super().__init__()
        self.projector, self.loss = nn.Linear(16, 12), loss
        for i, view in enumerate(views):
            self.register_buffer(f"view{i}", view)

    def forward(self) -> Tensor:
        found = self.loss(*(self.projector(view) for view in self.buffers(recurse=False)))
        return sum(found.values()) if isinstance(found, dict) else found


def library(module: str, name: str, *arguments: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return getattr(pytest.importorskip(module, exc_type=ImportError), name)(*arguments)

    return build


def lejepa() -> nn.Module:
    multivariate = pytest.importorskip("lejepa.multivariate", exc_type=ImportError)
    univariate = pytest.importorskip("lejepa.univariate", exc_type=ImportError)
    return multivariate.SlicingUnivariateTest(univariate.EppsPulley(), num_slices=64)


ONE, TWO, CLIP = (VIEWS[0],), (VIEWS[0], VIEWS[1]), (CLIP_VIEWS,)
LOSSES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "lightly SIGReg": (library("lightly.loss", "SIGReg"), ONE),
    "lightly SIGReg stand-in": (standin_losses.LightlySIGReg.SIGReg, ONE),
    "lightly VICReg": (library("lightly.loss", "VICRegLoss"), TWO),
    "lightly VICReg stand-in": (standin_losses.LightlyVICReg.VICRegLoss, TWO),
    "lightly Barlow": (library("lightly.loss", "BarlowTwinsLoss"), TWO),
    "lightly Barlow stand-in": (standin_losses.LightlyBarlow.BarlowTwinsLoss, TWO),
    "lejepa": (lejepa, ONE),
    "lejepa stand-in": (standin_losses.SlicingUnivariateTest, ONE),
    "stable-pretraining SIGReg": (library("stable_pretraining.methods.lejepa", "SlicedEppsPulley", 64), ONE),
    "stable-pretraining SIGReg stand-in": (standin_losses.SlicedEppsPulley, ONE),
    "stable-pretraining VICReg": (library("stable_pretraining.losses", "VICRegLoss"), TWO),
    "stable-pretraining Barlow": (library("stable_pretraining.losses", "BarlowTwinsLoss"), TWO),
    "stable-worldmodel SIGReg": (library("stable_worldmodel.wm.loss", "SIGReg"), CLIP),
    "stable-worldmodel SIGReg stand-in": (standin_losses.LeWMSIGReg.SIGReg, CLIP),
    "stable-worldmodel PLDM": (library("stable_worldmodel.wm.loss", "PLDMLoss"), CLIP),
    "stable-worldmodel PLDM stand-in": (standin_losses.PLDMLoss, CLIP),
    "eb_jepa BCS": (library("eb_jepa.losses", "BCS"), TWO),
    "eb_jepa BCS stand-in": (standin_losses.BCS, TWO),
    "eb_jepa VICReg": (library("eb_jepa.losses", "VICRegLoss"), TWO),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, mode: str) -> None:
    build, views = LOSSES[name]
    torch.manual_seed(0)
    trains_alike(Criterion(build(), *views), lambda module: module(), mode)


@pytest.fixture
def nothing_replaced():
    from jepa_fast.accelerate import restore_functions_

    yield
    restore_functions_()


@pytest.mark.parametrize("autocast", [False, True], ids=["eager", "autocast"])
@pytest.mark.parametrize("name", ["vicreg", "barlow"])
def test_solo_learn(name: str, autocast: bool, nothing_replaced) -> None:
    from jepa_fast.accelerate import patch_functions_

    module = pytest.importorskip(f"solo.losses.{name}", exc_type=ImportError)

    def step(projector: nn.Module) -> Tensor:
        return getattr(module, f"{name}_loss_func")(*(projector(cast(view, projector)) for view in VIEWS))

    torch.manual_seed(0)
    model = nn.Linear(16, 12)
    exact = exact_curve(model, step)
    eager = curve(copy.deepcopy(model), step, autocast)
    assert patch_functions_().replaced
    within_budget(curve(model, step, autocast), eager, exact)
