"""What a public op costs on the host beyond its kernel, on inputs so small that nothing else is left."""

from collections.abc import Iterator
from functools import partial

import torch

import jepa_fast
from jepa_fast.bench.measure import Case, Trial
from jepa_fast.bench.suites import ema, latent_loss
from jepa_fast.kernels.ema import api as ema_api
from jepa_fast.kernels.ema import plan as plans
from jepa_fast.kernels.latent_loss import api as latent_loss_api
from jepa_fast.kernels.latent_loss.settings import Settings


def cases() -> Iterator[Case]:
    yield Case("ema_update_", "2 tensors of 16x16", "float32", _ema)
    yield Case("latent_prediction_loss", "forward, B=2 N=8 K=4x4 D=16", "float32", _latent_loss)


def _ema(device: torch.device) -> Trial:
    targets, sources = ema.weights([(16, 16)] * 2, torch.float32, torch.float32, device)
    chosen = jepa_fast.explain("ema", targets, sources, ema.MOMENTUM).chosen
    launcher = ema_api.OPERATION.module(chosen).update_
    plan = plans.find(targets, sources, targets[0].device)
    return Trial(
        ours=partial(jepa_fast.ema_update_, targets, sources, ema.MOMENTUM),
        raw_launch=partial(launcher, plan, targets, sources, ema.MOMENTUM),
        check=partial(ema.check, targets, sources),
        implementation=chosen,
    )


def _latent_loss(device: torch.device) -> Trial:
    prediction, target, index = latent_loss.tensors((2, 8, 16), 4, torch.float32, device)
    plain = prediction.detach()
    chosen = jepa_fast.explain("latent_loss", plain, target, index).chosen
    launcher = latent_loss_api.OPERATION.module(chosen).loss_and_gradient
    settings = Settings("smooth_l1", beta=1.0, normalize_target=True, eps=1e-5)
    return Trial(
        ours=partial(jepa_fast.latent_prediction_loss, plain, target, index),
        raw_launch=partial(launcher, plain, target, index, settings, None),
        check=partial(latent_loss.check, prediction, target, index, "smooth_l1"),
        implementation=chosen,
    )
