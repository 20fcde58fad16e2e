"""The training step of V-JEPA 2-AC."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.kernels.latent_loss.api import latent_prediction_loss
from jepa_fast.models import VJEPA2AC
from jepa_fast.nn.fused import Fused
from jepa_fast.training.step import Precision, Step, check_pixels, describe


class Trajectories(NamedTuple):
    """A batch of V-JEPA 2-AC: what a robot saw and did, B times over T frames.

    pixels: `[B, 3, T, image_size, image_size]`. actions: `[B, T - 1, action_dim]`, from each frame to the next.
    states: `[B, T, action_dim]`. extrinsics: `[B, T, action_dim - 1]` of the camera, for a model that takes them.
    All in the dtype and on the device of the model.
    """

    pixels: Tensor
    actions: Tensor
    states: Tensor
    extrinsics: Tensor | None = None


class VJEPA2ACStep(Step):
    """One step of V-JEPA 2-AC (arXiv:2506.09985, section 3): the predictor alone is trained, the encoder stays.

        h = LayerNorm(encoder(frame)) for each frame;  P = LayerNorm(predictor(...)), both without affine
        loss = mean |P(h_1 .. h_T-1) - h_2 .. h_T| + mean |z_2 .. z_R+1 - h_2 .. h_R+1|
        z_2 = the first frame of P(h_1 .. h_T-1),  z_k+1 = the last frame of P(h_1, z_2 .. z_k)

    The first term is teacher forcing, the second a rollout of R frames, through which gradients go. The encoder sees a
    frame as a clip of its own, repeated over a tubelet.

    A batch is `Trajectories`; there are no masks and no momentum.

    Args:
        model: its predictor is trained in place, on the device and in the dtype it is in; its encoder is frozen.
        precision: dtype of the matrix products. Parameters, LayerNorm and loss stay in float32.
        fused: which fused ops the model and the step run on: True for all, False for none, or a selection.
        rollout: R, at least 1.

    Raises:
        ValueError: unknown `precision`; `rollout` below 1.
    """

    model: VJEPA2AC
    teacher: nn.Module

    def __init__(
        self,
        model: VJEPA2AC,
        *,
        precision: Precision = "float32",
        fused: bool | Fused = True,
        rollout: int = 2,
    ) -> None:
        if rollout < 1:
            raise ValueError(f"rollout: expected at least 1 frame, got {rollout}")
        parts: dict[str, nn.Module] = {"predictor": model.predictor}
        super().__init__(model, parts, teacher=model.encoder, precision=precision, fused=fused, frozen=True)
        self.rollout = rollout
        self.leaves_out = (
            not model.config.extrinsics
        )  # their embedding is in the published files all the same

    def _check(self, batch: Trajectories, masks: None) -> None:
        if not isinstance(batch, Trajectories):
            raise ValueError(f"batch: expected Trajectories, got {type(batch).__name__}")
        if masks is not None:
            raise ValueError(f"masks: expected None, got {type(masks).__name__}")
        config, like = self.model.config, next(self.model.parameters())
        frames = batch.pixels.shape[2] if batch.pixels.ndim == 5 else 0
        if frames <= self.rollout:
            raise ValueError(
                f"batch.pixels: expected [B, 3, T, {config.image_size}, {config.image_size}] with T above rollout = "
                f"{self.rollout}, got {list(batch.pixels.shape)}"
            )
        check_pixels("batch.pixels", batch.pixels, (3, frames, config.image_size, config.image_size), like)
        samples, size = len(batch.pixels), config.action_dim
        expected: dict[str, tuple[int, ...] | None] = {
            "actions": (samples, frames - 1, size),
            "states": (samples, frames, size),
            "extrinsics": (samples, frames, size - 1) if config.extrinsics else None,
        }
        for name, shape in expected.items():
            value = getattr(batch, name)
            found = None if value is None else (tuple(value.shape), value.dtype, value.device)
            if found != (None if shape is None else (shape, like.dtype, like.device)):
                wanted = "None" if shape is None else f"{like.dtype} {list(shape)} on {like.device}"
                got = "None" if value is None else describe(value)
                raise ValueError(f"batch.{name}: expected {wanted}, got {got}")

    def _loss(self, batch: Trajectories, masks: None) -> Tensor:
        frames, patches = batch.pixels.shape[2], self.model.encoder.num_patches
        with torch.no_grad():
            target = self._embed(batch.pixels)
        forced = self._predict(target[:, :-patches], batch, frames - 1)
        rolled = torch.cat([target[:, :patches], forced[:, :patches]], dim=1)
        for steps in range(2, self.rollout + 1):
            rolled = torch.cat([rolled, self._predict(rolled, batch, steps)[:, -patches:]], dim=1)
        following = target[:, patches:]
        rolled = rolled[:, patches:]
        return _distance(forced, following) + _distance(rolled, following[:, : rolled.shape[1]])

    def _embed(self, pixels: Tensor) -> Tensor:
        """`[B, T * patches, dim]`, normalised."""
        clips = pixels.transpose(1, 2).flatten(0, 1)[:, :, None]
        embedded = self.teacher(clips.expand(-1, -1, self.model.config.tubelet, -1, -1))
        return _normalized(embedded.unflatten(0, (len(pixels), -1)).flatten(1, 2))

    def _predict(self, x: Tensor, batch: Trajectories, steps: int) -> Tensor:
        """Frames 2 to `steps` + 1 from frames 1 to `steps`."""
        conditions = [None if part is None else part[:, :steps] for part in batch[1:]]
        return _normalized(self.model(x, *conditions))


def _normalized(x: Tensor) -> Tensor:
    """LayerNorm without affine, in float32 at least."""
    return F.layer_norm(x.float() if x.dtype == torch.bfloat16 else x, x.shape[-1:])


def _distance(prediction: Tensor, target: Tensor) -> Tensor:
    return latent_prediction_loss(prediction, target, kind="l1", normalize_target=False)
