"""VICReg and Barlow Twins as the code bases write them. Where a batch is spread over processes they gather in ways of
their own, and keep doing so."""

from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.accelerate.adapter import Adapter, Sample, Signatures, draw, original
from jepa_fast.kernels.covariance.api import barlow_twins_loss, covariance_loss, variance_loss, vicreg_loss

_EB_JEPA_EPS = 1e-4
_BARLOW_EPS = 1e-5


def alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def served(*views: Tensor) -> bool:
    """Whether the ops take the views as they are."""
    first = views[0]
    return all(
        view.ndim == 2
        and view.shape == first.shape
        and view.dtype == first.dtype
        and view.is_floating_point()
        and view.shape[0] > 1
        and view.shape[1] > 1
        for view in views
    )


class TwoViews(Adapter):
    kind = "loss"

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(9, 6), draw(9, 6)))]


class LightlyVICReg(TwoViews):
    name = "lightly_vicreg"
    title = "vicreg_loss"
    class_names = ("VICRegLoss",)
    attributes: ClassVar[dict[str, Any]] = {
        "lambda_param": (int, float),
        "mu_param": (int, float),
        "nu_param": (int, float),
        "gather_distributed": bool,
        "eps": float,
    }
    signatures: ClassVar[Signatures] = (("z_a", "z_b"),)

    @staticmethod
    def forward(self: Any, z_a: Tensor, z_b: Tensor) -> Tensor:
        if not served(z_a, z_b) or (self.gather_distributed and not alone()):
            return original(self)(self, z_a, z_b)
        return vicreg_loss(
            z_a,
            z_b,
            invariance=self.lambda_param,
            variance=self.mu_param,
            covariance=self.nu_param,
            eps=self.eps,
            normalization="lightly",
        )


class SpreadVICReg(TwoViews):
    """stable-pretraining, in both layouts: its weights on the module, or those of one view on `vcreg_loss`."""

    name = "stable_pretraining_vicreg"
    title = "vicreg_loss"
    class_names = ("VICRegLoss",)
    attributes: ClassVar[dict[str, Any]] = {"sim_coeff": (int, float)}
    optional = ("vcreg_loss",)
    signatures: ClassVar[Signatures] = (("z_i", "z_j"),)

    def more_reasons(self, module: Any) -> list[str]:
        holder = getattr(module, "vcreg_loss", module)
        return [
            f"expected attribute {name}"
            for name in ("std_coeff", "cov_coeff", "epsilon")
            if not hasattr(holder, name)
        ]

    @staticmethod
    def forward(self: Any, z_i: Tensor, z_j: Tensor) -> Tensor:
        if not served(z_i, z_j) or not alone():
            return original(self)(self, z_i, z_j)
        weights = getattr(self, "vcreg_loss", self)
        return vicreg_loss(
            z_i,
            z_j,
            invariance=self.sim_coeff,
            variance=weights.std_coeff,
            covariance=weights.cov_coeff,
            eps=weights.epsilon,
            normalization="stable_pretraining",
        )


class LightlyBarlowTwins(TwoViews):
    name = "lightly_barlow_twins"
    title = "barlow_twins_loss"
    class_names = ("BarlowTwinsLoss",)
    attributes: ClassVar[dict[str, Any]] = {"lambda_param": (int, float), "gather_distributed": bool}
    signatures: ClassVar[Signatures] = (("z_a", "z_b"),)

    @staticmethod
    def forward(self: Any, z_a: Tensor, z_b: Tensor) -> Tensor:
        if not served(z_a, z_b) or (self.gather_distributed and not alone()):
            return original(self)(self, z_a, z_b)
        return barlow_twins_loss(
            z_a, z_b, off_diagonal=self.lambda_param, eps=_BARLOW_EPS, normalization="lightly"
        )


class SpreadBarlowTwins(TwoViews):
    name = "stable_pretraining_barlow_twins"
    title = "barlow_twins_loss"
    class_names = ("BarlowTwinsLoss",)
    attributes: ClassVar[dict[str, Any]] = {"lambd": (int, float)}
    signatures: ClassVar[Signatures] = (("z_i", "z_j"),)

    def more_reasons(self, module: Any) -> list[str]:
        bn = getattr(module, "bn", None)
        return (
            ["attribute bn: expected none, the loss normalises by itself"]
            if isinstance(bn, nn.Module)
            else []
        )

    @staticmethod
    def forward(self: Any, z_i: Tensor, z_j: Tensor) -> Tensor:
        if not served(z_i, z_j) or not alone():
            return original(self)(self, z_i, z_j)
        return barlow_twins_loss(
            z_i, z_j, off_diagonal=self.lambd, eps=_BARLOW_EPS, normalization="stable_pretraining"
        )


class HingeStd(Adapter):
    """eb_jepa: one view's hinge on the deviations, which VCLoss, VICRegLoss and the regulariser call."""

    name = "eb_jepa_hinge_std"
    kind = "loss"
    title = "variance_loss"
    class_names = ("HingeStdLoss",)
    attributes: ClassVar[dict[str, Any]] = {"std_margin": (int, float)}
    signatures: ClassVar[Signatures] = (("x",),)

    def more_reasons(self, module: Any) -> list[str]:
        return (
            [] if module.std_margin == 1 else [f"attribute std_margin: expected 1, got {module.std_margin}"]
        )

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(9, 6) * 0.3,))]

    @staticmethod
    def forward(self: Any, x: Tensor) -> Tensor:
        return variance_loss(x, eps=_EB_JEPA_EPS) if served(x) else original(self)(self, x)


class EBJEPAVICReg(TwoViews):
    """eb_jepa: it returns its terms one by one, and the modules that form them are replaced."""

    name = "eb_jepa_vicreg"
    title = "itself, by its two terms"
    class_names = ("VICRegLoss",)
    attributes: ClassVar[dict[str, Any]] = {
        "std_coeff": (int, float),
        "cov_coeff": (int, float),
        "std_loss_fn": nn.Module,
        "cov_loss_fn": nn.Module,
    }
    signatures: ClassVar[Signatures] = (("z1", "z2"),)

    @staticmethod
    def forward(self: Any, z1: Tensor, z2: Tensor) -> Any:
        return original(self)(self, z1, z2)


class Covariance(Adapter):
    """eb_jepa: the mean over pairs of features."""

    name = "eb_jepa_covariance"
    kind = "loss"
    title = "covariance_loss"
    class_names = ("CovarianceLoss",)
    attributes: ClassVar[dict[str, Any]] = {}
    signatures: ClassVar[Signatures] = (("x",),)

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(9, 6),)), Sample((draw(5, 8),))]

    @staticmethod
    def forward(self: Any, x: Tensor) -> Tensor:
        return covariance_loss(x, normalization="eb_jepa") if served(x) else original(self)(self, x)


class WorldModelVCReg(Adapter):
    """stable-worldmodel: `[B, T, D]`, hinge and covariances over the batch for each time step, and over time for each
    sample. As published the latter are centred over the batch alone. Their matrices `[B, D, D]` have rank T, so that
    their squares are summed over products of time steps instead."""

    name = "stable_worldmodel_vcreg"
    kind = "loss"
    title = "covariances from products of the shorter side"
    class_names = ("VCReg",)
    attributes: ClassVar[dict[str, Any]] = {"eps": float}
    signatures: ClassVar[Signatures] = (("z",),)

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(9, 3, 6) * 0.7,)), Sample((draw(4, 7, 5) * 0.7,))]

    @staticmethod
    def forward(self: Any, z: Tensor) -> Any:
        if z.ndim != 3 or min(z.shape) < 2 or not z.is_floating_point():
            return original(self)(self, z)
        with torch.autocast(z.device.type, enabled=False):
            z = z if z.dtype == torch.float64 else z.float()
            of_samples = z - z.mean(dim=0)
            of_steps = of_samples.transpose(0, 1)
            return {
                "std_loss": _hinge(of_steps, self.eps),
                "std_t_loss": _hinge(of_samples, self.eps),
                "cov_loss": _pairs(of_steps),
                "cov_t_loss": _pairs(of_samples),
            }


def _hinge(z: Tensor, eps: float) -> Tensor:
    """Of `[G, N, D]`, the mean over G and D."""
    return F.relu(1.0 - (z.var(dim=1) + eps).sqrt()).mean()


def _pairs(z: Tensor) -> Tensor:
    """Of `[G, N, D]`, the mean over G and pairs of features of (Z'Z / (N - 1))^2: |Z'Z| is |ZZ'|."""
    rows, features = z.shape[1:]
    if rows < features:
        matrix, own = z @ z.mT, z.square().sum(dim=1)
    else:
        matrix = z.mT @ z
        own = matrix.diagonal(dim1=1, dim2=2)
    squares = matrix.square().sum(dim=(1, 2)) - own.square().sum(dim=1)
    return squares.mean() / ((rows - 1) ** 2 * features * (features - 1))


ADAPTERS = (
    LightlyVICReg(),
    SpreadVICReg(),
    LightlyBarlowTwins(),
    SpreadBarlowTwins(),
    EBJEPAVICReg(),
    HingeStd(),
    Covariance(),
    WorldModelVCReg(),
)
