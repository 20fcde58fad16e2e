"""SIGReg as the code bases write it. Directions are drawn as they draw them, with the same generators, so that a run
with the same seed sees the same directions; the statistic is `sigreg_loss`."""

from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.accelerate.adapter import Adapter, Sample, Signatures, draw, original
from jepa_fast.kernels.sigreg.api import sigreg_loss

_T_MAX = "_jepa_fast_t_max"


class SIGReg(Adapter):
    """What they share: knots in `t`, the Gaussian's `phi`, trapezoid `weights`. The last knot is read once, when the
    class is swapped, since to read it from a device would stop the stream."""

    kind = "loss"
    title = "sigreg_loss"
    # Samples are float32, in which some of them draw their directions.
    tolerance = 1e-4
    attributes: ClassVar[dict[str, Any]] = {"t": Tensor, "phi": Tensor, "weights": Tensor}

    def knots(self, module: Any) -> Any:
        """The module that holds them."""
        return module

    def more_reasons(self, module: Any) -> list[str]:
        return quadrature_reasons(self.knots(module))

    def on_patch(self, module: Any) -> None:
        module.__dict__[_T_MAX] = float(self.knots(module).t[-1])

    def on_restore(self, module: Any) -> None:
        module.__dict__.pop(_T_MAX, None)


def quadrature_reasons(module: Any) -> list[str]:
    for name in ("t", "phi", "weights"):
        if not isinstance(getattr(module, name, None), Tensor):
            return [f"expected attribute {name}"]
    if module.t.is_meta or module.t.ndim != 1 or len(module.t) < 2:
        return ["attribute t: expected at least two knots with values"]
    t = module.t.detach().double().cpu()
    even = torch.linspace(0.0, float(t[-1]), len(t), dtype=torch.float64)
    width = torch.full_like(t, 2 * float(t[-1]) / (len(t) - 1))
    width[[0, -1]] /= 2
    phi = torch.exp(-even.square() / 2)
    for name, expected in (("t", even), ("phi", phi), ("weights", width * phi)):
        value = getattr(module, name).detach().double().cpu()
        if value.shape != expected.shape or not torch.allclose(value, expected, rtol=1e-2, atol=1e-3):
            return [f"attribute {name}: expected the trapezoid rule from 0 to the last knot"]
    return []


def _unit(directions: Tensor) -> Tensor:
    return directions / directions.norm(p=2, dim=0)


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _statistic(self: Any, module: Any, x: Tensor, directions: Tensor, **options: Any) -> Tensor:
    return sigreg_loss(
        x, directions=directions, num_knots=len(module.t), t_max=self.__dict__[_T_MAX], **options
    )


class LightlySIGReg(SIGReg):
    """lightly. Its distributed gradient is that of the whole batch after DDP's mean, as `averaged_gradients` gives."""

    name = "lightly_sigreg"
    class_names = ("SIGReg",)
    attributes: ClassVar[dict[str, Any]] = {
        **SIGReg.attributes,
        "num_vectors": int,
        "gather_distributed": bool,
    }
    signatures: ClassVar[Signatures] = (("proj",),)

    def samples(self, module: Any) -> list[Sample]:
        return [] if module.gather_distributed else [Sample((draw(3, 9, 6, dtype=torch.float32),))]

    @staticmethod
    def forward(self: Any, proj: Tensor) -> Tensor:
        spread = self.gather_distributed and _world() > 1
        if proj.ndim < 2 or (proj.shape[-2] < 2 and not spread):
            return original(self)(self, proj)
        shape = (proj.shape[-1], self.num_vectors)
        directions = torch.randn(shape, device=proj.device, dtype=proj.dtype)
        if spread:
            dist.broadcast(directions, src=0)
            return _statistic(
                self, self, proj, _unit(directions), group=dist.group.WORLD, averaged_gradients=True
            )
        return _statistic(self, self, proj, _unit(directions))


class WorldModelSIGReg(SIGReg):
    """stable-worldmodel and le-wm: `[T, B, D]`, directions from the global generator, one process."""

    name = "lewm_sigreg"
    class_names = ("SIGReg",)
    attributes: ClassVar[dict[str, Any]] = {**SIGReg.attributes, "num_proj": int}
    signatures: ClassVar[Signatures] = (("proj",),)

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(3, 9, 6, dtype=torch.float32),))]

    @staticmethod
    def forward(self: Any, proj: Tensor) -> Tensor:
        if proj.ndim < 2 or proj.shape[-2] < 2:
            return original(self)(self, proj)
        directions = torch.randn(proj.shape[-1], self.num_proj, device=proj.device)
        return _statistic(self, self, proj, _unit(directions))


class LeJEPASlicing(SIGReg):
    """lejepa: `SlicingUnivariateTest` of an `EppsPulley`, with the seed that its ranks agree on."""

    name = "lejepa_sigreg"
    class_names = ("SlicingUnivariateTest",)
    attributes: ClassVar[dict[str, Any]] = {
        "univariate_test": nn.Module,
        "num_slices": int,
        "reduction": (str, type(None)),
        "clip_value": (int, float, type(None)),
        "sampler": str,
        "global_step": Tensor,
    }
    signatures: ClassVar[Signatures] = (("x",),)

    def knots(self, module: Any) -> Any:
        return module.univariate_test

    def more_reasons(self, module: Any) -> list[str]:
        reasons = []
        if type(module.univariate_test).__name__ != "EppsPulley":
            reasons.append(
                f"attribute univariate_test: expected EppsPulley, got {type(module.univariate_test).__name__}"
            )
        if module.reduction not in ("mean", "sum"):
            reasons.append(f"attribute reduction: expected mean or sum, got {module.reduction!r}")
        if module.clip_value is not None:
            reasons.append(f"attribute clip_value: expected None, got {module.clip_value}")
        return reasons or super().more_reasons(module)

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(3, 9, 6, dtype=torch.float32),))]

    @staticmethod
    def forward(self: Any, x: Tensor) -> Tensor:
        if x.ndim < 2 or (x.shape[-2] < 2 and _world() == 1):
            return original(self)(self, x)
        with torch.no_grad():
            step = self.global_step.clone()
            if _world() > 1:
                dist.all_reduce(step, dist.ReduceOp.MAX)
            generator = torch.Generator(device=x.device)
            generator.manual_seed(step.item())
            directions = torch.randn(x.shape[-1], self.num_slices, device=x.device, generator=generator)
            self.global_step.add_(1)
        spread = {"group": dist.group.WORLD, "averaged_gradients": True} if _world() > 1 else {}
        loss = _statistic(self, self.univariate_test, x, _unit(directions), **spread)
        return loss if self.reduction == "mean" else loss * (x.shape[:-2].numel() * self.num_slices)


class SpreadSlicing(SIGReg):
    """stable-pretraining: `SlicedEppsPulley`. Over several processes it keeps its sums to itself and counts the others
    in its factor N alone, as published."""

    name = "stable_pretraining_sigreg"
    class_names = ("SlicedEppsPulley",)
    attributes: ClassVar[dict[str, Any]] = {"num_slices": int, "ep": nn.Module, "global_step": Tensor}
    signatures: ClassVar[Signatures] = (("x",),)
    corrected = False

    def knots(self, module: Any) -> Any:
        return module.ep

    def samples(self, module: Any) -> list[Sample]:
        return [] if _world() > 1 else [Sample((draw(9, 6, dtype=torch.float32),))]

    @staticmethod
    def forward(self: Any, x: Tensor) -> Tensor:
        return _sliced(self, x, {"variant": "stable_pretraining", "group": dist.group.WORLD})


class CorrectedSpreadSlicing(SpreadSlicing):
    """The same, with the sums taken over all processes."""

    name = "stable_pretraining_sigreg_corrected"
    title = "sigreg_loss of the whole batch"
    corrected = True

    @staticmethod
    def forward(self: Any, x: Tensor) -> Tensor:
        return _sliced(self, x, {"group": dist.group.WORLD, "averaged_gradients": True})


def _sliced(self: Any, x: Tensor, spread: dict[str, Any]) -> Tensor:
    world = getattr(self.ep, "world_size", 1)
    if x.ndim != 2 or len(x) < 2 or world != _world():
        return original(self)(self, x)
    with torch.no_grad():
        step = self.global_step.clone()
        if world > 1:
            dist.broadcast(step, src=0)
        generator = torch.Generator(device=x.device).manual_seed(step.item())
        directions = torch.randn(x.shape[-1], self.num_slices, device=x.device, generator=generator)
        self.global_step.add_(1)
    return _statistic(self, self.ep, x, _unit(directions), **(spread if world > 1 else {}))


class BatchedSlicing(Adapter):
    """eb_jepa: `BCS`, knots from -3 to 3, no factor N. Over several processes it is left to itself."""

    name = "eb_jepa_bcs"
    kind = "loss"
    title = "sigreg_loss"
    tolerance = 1e-4
    class_names = ("BCS",)
    attributes: ClassVar[dict[str, Any]] = {"num_slices": int, "step": int, "lmbd": (int, float)}
    signatures: ClassVar[Signatures] = (("z1", "z2"),)

    def samples(self, module: Any) -> list[Sample]:
        return [Sample((draw(9, 6, dtype=torch.float32), draw(9, 6, dtype=torch.float32)))]

    @staticmethod
    def forward(self: Any, z1: Tensor, z2: Tensor) -> Any:
        if _world() > 1 or z1.ndim != 2 or z2.shape != z1.shape or len(z1) < 2:
            return original(self)(self, z1, z2)
        with torch.no_grad():
            generator = torch.Generator(device=z1.device)
            generator.manual_seed(self.step)
            directions = _unit(
                torch.randn(z1.shape[1], self.num_slices, device=z1.device, generator=generator)
            )
        self.step += 1
        views = [sigreg_loss(z, directions=directions, variant="eb_jepa") for z in (z1, z2)]
        statistic = (views[0] + views[1]) / 2
        invariance = F.mse_loss(z1, z2)
        total = invariance + self.lmbd * statistic
        return {"loss": total, "bcs_loss": statistic, "invariance_loss": invariance}


ADAPTERS = (
    LightlySIGReg(),
    WorldModelSIGReg(),
    LeJEPASlicing(),
    SpreadSlicing(),
    CorrectedSpreadSlicing(),
    BatchedSlicing(),
)
