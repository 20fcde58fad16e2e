"""Losses with the class names, signatures, attributes and formulas that the code bases document, in our own words."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quadrature(knots: int, t_max: float) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.linspace(0, t_max, knots)
    phi = torch.exp(-t.square() / 2)
    weights = torch.full((knots,), 2 * t_max / (knots - 1))
    weights[[0, -1]] /= 2
    return t, phi, weights * phi


def statistic(y: Tensor, t: Tensor, phi: Tensor, weights: Tensor) -> Tensor:
    """Epps and Pulley's of `[..., N, M]`, `[..., M]`."""
    angle = y[..., None] * t
    distance = (angle.cos().mean(-3) - phi).square() + angle.sin().mean(-3).square()
    return distance @ weights * y.shape[-2]


class _Quadrature(nn.Module):
    def __init__(self, knots: int, t_max: float) -> None:
        super().__init__()
        for name, value in zip(("t", "phi", "weights"), quadrature(knots, t_max), strict=True):
            self.register_buffer(name, value)


def unit(directions: Tensor) -> Tensor:
    return directions / directions.norm(dim=0)


class LightlySIGReg:
    class SIGReg(_Quadrature):
        def __init__(self, knots: int = 17, t_max: float = 3.0, num_vectors: int = 64) -> None:
            super().__init__(knots, t_max)
            self.num_vectors, self.gather_distributed = num_vectors, False

        def forward(self, proj):
            directions = unit(torch.randn(proj.shape[-1], self.num_vectors, dtype=proj.dtype))
            return statistic(proj @ directions, self.t, self.phi, self.weights).mean()


class LeWMSIGReg:
    class SIGReg(_Quadrature):
        def __init__(self, knots: int = 17, num_proj: int = 64) -> None:
            super().__init__(knots, 3.0)
            self.num_proj = num_proj

        def forward(self, proj):
            directions = unit(torch.randn(proj.shape[-1], self.num_proj))
            return statistic(proj @ directions, self.t, self.phi, self.weights).mean()


class EppsPulley(_Quadrature):
    def __init__(self) -> None:
        super().__init__(17, 3.0)
        self.world_size = 1

    def forward(self, x):
        return statistic(x, self.t, self.phi, self.weights)


class SlicingUnivariateTest(nn.Module):
    def __init__(self, reduction: str | None = "mean", clip_value: float | None = None) -> None:
        super().__init__()
        self.univariate_test, self.num_slices, self.sampler = EppsPulley(), 64, "gaussian"
        self.reduction, self.clip_value = reduction, clip_value
        self.register_buffer("global_step", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        generator = torch.Generator().manual_seed(int(self.global_step))
        self.global_step += 1
        found = self.univariate_test(x @ unit(torch.randn(x.shape[-1], self.num_slices, generator=generator)))
        return found.mean() if self.reduction == "mean" else found.sum() if self.reduction == "sum" else found


class SlicedEppsPulley(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ep, self.num_slices = EppsPulley(), 64
        self.register_buffer("global_step", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        generator = torch.Generator().manual_seed(int(self.global_step))
        self.global_step += 1
        return self.ep(x @ unit(torch.randn(x.shape[-1], self.num_slices, generator=generator))).mean()


class BCS(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_slices, self.step, self.lmbd = 64, 0, 10.0

    def forward(self, z1, z2):
        directions = unit(torch.randn(z1.shape[1], 64, generator=torch.Generator().manual_seed(self.step)))
        self.step += 1
        t = torch.linspace(-3, 3, 10)
        phi = torch.exp(-t.square() / 2)
        terms = []
        for z in (z1, z2):
            found = torch.polar(torch.ones(()), (z @ directions)[..., None] * t).mean(0)
            terms.append(torch.trapezoid((found - phi).abs().square() * phi, t, dim=1).mean())
        bcs, invariance = (terms[0] + terms[1]) / 2, F.mse_loss(z1, z2)
        return {"loss": invariance + self.lmbd * bcs, "bcs_loss": bcs, "invariance_loss": invariance}


class LightlyVICReg:
    class VICRegLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lambda_param, self.mu_param, self.nu_param = 25.0, 20.0, 1.5
            self.gather_distributed, self.eps = False, 1e-4

        def forward(self, z_a, z_b):
            hinges = sum(F.relu(1 - (z.var(0) + self.eps).sqrt()).mean() for z in (z_a, z_b)) / 2
            squares = sum(
                (z.mT.cov().square().sum() - z.var(0).square().sum()) / z.shape[1] for z in (z_a, z_b)
            )
            return self.lambda_param * F.mse_loss(z_a, z_b) + self.mu_param * hinges + self.nu_param * squares


class LightlyBarlow:
    class BarlowTwinsLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lambda_param, self.gather_distributed = 5e-3, False

        def forward(self, z_a, z_b):
            a, b = (F.batch_norm(z, None, None, training=True) for z in (z_a, z_b))
            matrix = a.mT @ b / len(a)
            diagonal = matrix.diagonal()
            others = matrix.square().sum() - diagonal.square().sum()
            return (diagonal - 1).square().sum() + self.lambda_param * others


class HingeStdLoss(nn.Module):
    def __init__(self, std_margin: float = 1.0) -> None:
        super().__init__()
        self.std_margin = std_margin

    def forward(self, x):
        return F.relu(self.std_margin - (x.var(0) + 1e-4).sqrt()).mean()


class CovarianceLoss(nn.Module):
    def forward(self, x):
        matrix, features = x.mT.cov(), x.shape[1]
        return (matrix.square().sum() - matrix.diagonal().square().sum()) / (features * (features - 1))


class VCReg(nn.Module):
    """stable-worldmodel: over the batch for each step, over the steps for each sample, both centred over the batch."""

    def __init__(self, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps = eps

    def hinge(self, z):
        return torch.stack([F.relu(1 - (rows.var(0) + self.eps).sqrt()).mean() for rows in z]).mean()

    def covariances(self, z):
        found = []
        for rows in z:
            matrix, features = rows.mT @ rows / (len(rows) - 1), rows.shape[1]
            squares = (matrix - matrix.diagonal().diag()).square().sum()
            found.append(squares / (features * (features - 1)))
        return torch.stack(found).mean()

    def forward(self, z):
        z = z - z.mean(0)
        steps = z.transpose(0, 1)
        return {
            "std_loss": self.hinge(steps),
            "std_t_loss": self.hinge(z),
            "cov_loss": self.covariances(steps),
            "cov_t_loss": self.covariances(z),
        }


class PLDMLoss(nn.Module):
    """stable-worldmodel: `VCReg`, the distance of neighbouring steps, and that of predicted actions."""

    def __init__(self) -> None:
        super().__init__()
        self.vc_reg = VCReg()

    def forward(self, z, a_pred=None, a_target=None):
        found = {"temp_align_loss": F.mse_loss(z[:, :-1], z[:, 1:]), **self.vc_reg(z)}
        if a_pred is not None and a_target is not None:
            found["idm_loss"] = F.mse_loss(a_pred, a_target)
        return found
