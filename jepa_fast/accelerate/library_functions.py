"""What takes the place of functions and methods of libraries; each is made from the published one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jepa_fast.kernels.covariance.api import barlow_twins_loss, covariance_loss, variance_loss, vicreg_loss
from jepa_fast.kernels.ema.api import ema_update_

from .adapters.vicreg import alone, served
from .frame_causal import FrameCausal
from .rotary import coordinates

_SOLO_EPS = 1e-4
_SOLO_SCALE = 0.025  # folded into barlow_twins_loss's "solo_learn"
_CONTEXT_ROWS = 512  # of the distance matrix at a time, so that 64-frame clips stay below 200 MB


def _floating(*lists: list[Tensor]) -> bool:
    """Whether all pairs are floating-point of one shape and place, which one pass can serve."""
    return all(
        len(group) > 0
        and all(
            t.is_floating_point() and t.shape == group[0].shape and t.device == lists[0][0].device
            for t in group
        )
        for group in zip(*lists, strict=True)
    )


def _update(targets: list[Tensor], sources: list[Tensor], momentum: Any) -> bool:
    """Whether `ema_update_` served."""
    fits = (
        targets and len(targets) == len(sources) and isinstance(momentum, (int, float)) and 0 <= momentum <= 1
    )
    if not fits or not _floating(targets, sources):
        return False
    with torch.no_grad():
        ema_update_(targets, sources, float(momentum))
    return True


def update_momentum(published: Callable[..., Any]) -> Callable[..., Any]:
    def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
        if not _update(list(model_ema.parameters()), list(model.parameters()), m):
            published(model, model_ema, m)

    return update_momentum


def momentum_updater(published: Callable[..., Any]) -> Callable[..., Any]:
    """solo-learn makes a new tensor for every parameter in every step; here they stay where they are."""

    def update(self: Any, online_net: nn.Module, momentum_net: nn.Module) -> None:
        if not _update(list(momentum_net.parameters()), list(online_net.parameters()), self.cur_tau):
            published(self, online_net, momentum_net)

    return update


def update_teacher(published: Callable[..., Any]) -> Callable[..., Any]:
    """stable-pretraining updates buffers as well, integer ones by integer arithmetic, in which both factors are 0 below
    a coefficient of 1: such counters it sets to 0, and so does this."""

    def update_teacher(self: Any) -> None:
        if not self.training:
            return
        coefficient = self.ema_coefficient.item()
        if coefficient in (0.0, 1.0):
            return
        teacher = [*self.teacher.parameters(), *self.teacher.buffers()]
        student = [*self.student.parameters(), *self.student.buffers()]
        pairs = [(t, s) for t, s in zip(teacher, student, strict=False) if t.is_floating_point()]
        counts = len(list(self.teacher.parameters())) == len(list(self.student.parameters()))
        if not counts or not _update([t for t, _ in pairs], [s for _, s in pairs], coefficient):
            published(self)
            return
        with torch.no_grad():
            for target in teacher:
                if not target.is_floating_point():
                    target.zero_()

    return update_teacher


def dinov3_update_ema(published: Callable[..., Any]) -> Callable[..., Any]:
    """Sharded parameters are updated shard by shard."""

    def update_ema(self: Any, m: float) -> None:
        if self.ema_params_lists is None:
            pairs = [
                pair
                for key in self.student
                for pair in zip(
                    self.student[key].parameters(), self.model_ema[key].parameters(), strict=False
                )
            ]
            self.ema_params_lists = ([student for student, _ in pairs], [teacher for _, teacher in pairs])
        students, teachers = ([_local(tensor) for tensor in tensors] for tensors in self.ema_params_lists)
        if not _update(teachers, students, m):
            published(self, m)

    return update_ema


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def solo_variance(published: Callable[..., Any]) -> Callable[..., Any]:
    def variance(z1: Tensor, z2: Tensor) -> Tensor:
        if not served(z1) or not served(z2):
            return published(z1, z2)
        return variance_loss(z1, eps=_SOLO_EPS) + variance_loss(z2, eps=_SOLO_EPS)

    return variance


def solo_covariance(published: Callable[..., Any]) -> Callable[..., Any]:
    def covariance(z1: Tensor, z2: Tensor) -> Tensor:
        if not served(z1, z2):
            return published(z1, z2)
        return covariance_loss(z1, normalization="solo_learn") + covariance_loss(
            z2, normalization="solo_learn"
        )

    return covariance


def solo_vicreg(published: Callable[..., Any]) -> Callable[..., Any]:
    def vicreg(
        z1: Tensor,
        z2: Tensor,
        sim_loss_weight: float = 25.0,
        var_loss_weight: float = 25.0,
        cov_loss_weight: float = 1.0,
    ) -> Tensor:
        if not served(z1, z2) or not alone():
            return published(z1, z2, sim_loss_weight, var_loss_weight, cov_loss_weight)
        return vicreg_loss(
            z1,
            z2,
            invariance=sim_loss_weight,
            variance=var_loss_weight,
            covariance=cov_loss_weight,
            eps=_SOLO_EPS,
            normalization="solo_learn",
        )

    return vicreg


def solo_barlow(published: Callable[..., Any]) -> Callable[..., Any]:
    def barlow(z1: Tensor, z2: Tensor, lamb: float = 5e-3, scale_loss: float = _SOLO_SCALE) -> Tensor:
        if not served(z1, z2) or not alone():
            return published(z1, z2, lamb, scale_loss)
        loss = barlow_twins_loss(z1, z2, off_diagonal=lamb, normalization="solo_learn")
        return loss if scale_loss == _SOLO_SCALE else loss * (scale_loss / _SOLO_SCALE)

    return barlow


def block_causal_mask(published: Callable[..., Any]) -> Callable[..., Any]:
    def build(T: int, H: int, W: int, add_tokens: int = 1) -> FrameCausal:
        step = add_tokens + H * W
        return FrameCausal(step, T * step)

    return build


def mask_distance(published: Callable[..., Any]) -> Callable[..., Any]:
    """V-JEPA 2.1: square root of the distance from every context token to the nearest target token. The published code
    asks for one context token after the other."""

    def distance(
        masks_pred: Any, masks_enc: Any, grid_size: int, offset_context_loss: bool
    ) -> list[list[Tensor]]:
        scale = (
            1.0 / (grid_size // 16) if offset_context_loss else 1.0
        )  # a grid of 16 is that of pre-training
        return [
            [
                _nearest(context, target, grid_size).mul(scale).sqrt().squeeze()
                for target, context in zip(targets, contexts, strict=False)
            ]
            for targets, contexts in zip(masks_pred, masks_enc, strict=False)
        ]

    return distance


def _nearest(context: Tensor, target: Tensor, side: int) -> Tensor:
    """`[B, Nc]` from ids `[B, Nc]` and `[B, Nt]`; squares are whole numbers, so that a product forms them exactly."""
    here, there = (coordinates(ids, side, side).float() for ids in (context, target))
    return torch.cat([torch.cdist(rows, there).amin(-1) for rows in here.split(_CONTEXT_ROWS, dim=1)], dim=1)
