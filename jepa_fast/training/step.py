"""The training step of I-JEPA."""

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa_fast.kernels.adamw_ema.api import AdamWEMA
from jepa_fast.kernels.ema.api import ema_update_
from jepa_fast.kernels.latent_loss.api import latent_prediction_loss
from jepa_fast.kernels.runtime.products import using_copies
from jepa_fast.masks import Masks
from jepa_fast.models import IJEPA
from jepa_fast.nn.fused import Fused, set_fused

Precision = Literal["float32", "bfloat16"]

PARTS = ("encoder", "predictor", "teacher", "optimizer")


class IJEPAStep:
    """One step of I-JEPA (arXiv:2301.08243): forward, backward, AdamW, and the moving average of the teacher.

    The loss is the smooth-L1 distance of the predictions to the teacher's tokens after LayerNorm without affine.
    It is optimized by AdamW with PyTorch's betas and eps; weight decay is for parameters of two or more dimensions.

    Args:
        model: trained in place, on the device and in the dtype it is in.
        precision: dtype of the matrix products. Parameters, residual streams, LayerNorm and loss stay in float32.
        teacher: the target encoder, updated in place; None starts it as a copy of `model.encoder`.
        fused: which fused ops the model and the step run on: True for all, False for none, or a selection.

    Raises:
        ValueError: unknown `precision`.
    """

    def __init__(
        self,
        model: IJEPA,
        *,
        precision: Precision = "float32",
        teacher: nn.Module | None = None,
        fused: bool | Fused = True,
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision: expected 'float32' or 'bfloat16', got {precision!r}")
        self.model = model
        self.precision = precision
        self.encoder = model.encoder
        self.predictor = model.predictor
        self.teacher = copy.deepcopy(model.encoder) if teacher is None else teacher
        self.teacher.requires_grad_(False)
        self.fused = fused if isinstance(fused, Fused) else Fused() if fused else Fused.none()
        for part in (model, self.teacher):
            set_fused(part, self.fused)
        groups = parameter_groups(self.encoder, self.predictor)
        self.optimizer: torch.optim.Optimizer
        self._copies: _Copies | None = None
        if self.fused.adamw_ema:
            pairs = zip(self.teacher.parameters(), self.encoder.parameters(), strict=True)
            copies = torch.bfloat16 if precision == "bfloat16" else None
            self.optimizer = AdamWEMA(groups, teacher=pairs, copies=copies)
            if copies is not None:
                self._copies = _Copies(self.optimizer, [*model.parameters(), *self.teacher.parameters()])
        else:
            fusible = next(model.parameters()).device.type in ("cpu", "cuda")
            self.optimizer = torch.optim.AdamW(groups, fused=fusible)

    def step(
        self, pixels: Tensor, masks: Masks, *, lr: float, weight_decay: float, momentum: float
    ) -> Tensor:
        """Trains on one batch.

        Args:
            pixels: float32 `[B, 3, image_size, image_size]` on the model's device.
            masks: int64 patch indices on the same device, mask-major: context `[E * B, Nc]`, target `[M * B, Np]`.
            lr, weight_decay: of AdamW in this step.
            momentum: of the teacher, teacher = momentum * teacher + (1 - momentum) * encoder.

        Returns:
            The loss before the update: a float32 scalar without gradient, on the model's device.

        Raises:
            ValueError: a tensor of another shape, dtype or device.
        """
        check_batch(pixels, masks, self.model)
        device = pixels.device.type
        copies = None if self._copies is None else self._copies.current()
        autocast = torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16")
        with autocast, using_copies(copies):
            patches = self.encoder.patch_embed.patchify(pixels)
            with torch.no_grad():
                target = self.teacher(patches)
            prediction = self.model(patches, masks)
        # Row (m * E + e) * B + b of the predictions is about target mask m of image b.
        by_mask = masks.target.unflatten(0, (-1, 1, len(pixels)))
        index = by_mask.expand(-1, len(masks.context) // len(pixels), -1, -1).flatten(0, 2)
        loss = latent_prediction_loss(prediction, target, index)

        loss.backward()
        set_rates(self.optimizer, lr, weight_decay)
        if isinstance(self.optimizer, AdamWEMA):
            for group in self.optimizer.param_groups:
                group["momentum"] = momentum
        self.optimizer.step()
        if self._copies is not None:
            self._copies.note()
        self.optimizer.zero_grad()
        if not isinstance(self.optimizer, AdamWEMA):
            ema_update_(self.teacher.parameters(), self.encoder.parameters(), momentum)
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """State dicts of encoder, predictor, teacher and optimizer, by these names; tensors are not copied."""
        return {part: getattr(self, part).state_dict() for part in PARTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned."""
        for part in PARTS:
            getattr(self, part).load_state_dict(state[part])


class _Copies:
    """The optimizer's low-precision copies, written anew where a tensor was changed by other means than its step."""

    def __init__(self, optimizer: AdamWEMA, tensors: list[Tensor]) -> None:
        self.optimizer, self.tensors = optimizer, tensors
        self.note()

    def note(self) -> None:
        """The copies are right now."""
        self.versions = [tensor._version for tensor in self.tensors]

    def current(self) -> Callable[[Tensor], Tensor]:
        """Gives the copy of a parameter."""
        if self.versions != [tensor._version for tensor in self.tensors]:
            self.optimizer.refresh_copies()
            self.note()
        return self.optimizer.copy_of


def parameter_groups(encoder: nn.Module, predictor: nn.Module) -> list[dict[str, Any]]:
    """The published parameter groups in their order, so that optimizer states can be exchanged.

    Weights of the encoder, weights of the predictor, then what has one dimension (biases and LayerNorm) in each,
    without weight decay. The position tables are in the lists, too; they have no gradient and do not change.
    """
    halves = [list(half.parameters()) for half in (encoder, predictor)]
    groups: list[dict[str, Any]] = [{"params": [p for p in half if p.ndim > 1]} for half in halves]
    for half in halves:
        groups.append({"params": [p for p in half if p.ndim == 1], "WD_exclude": True, "weight_decay": 0.0})
    return groups


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Sets the learning rate of all groups, and the weight decay of those that have one."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if not group.get("WD_exclude", False):
            group["weight_decay"] = weight_decay


def check_batch(pixels: Tensor, masks: Masks, model: IJEPA) -> None:
    """Raises ValueError where a batch does not fit the model; index values are read on the CPU alone."""
    table = model.encoder.pos_embed
    side = model.config.image_size
    expected = f"{table.dtype} [B, 3, {side}, {side}] on {table.device}"
    fits = pixels.ndim == 4 and pixels.shape[0] > 0 and pixels.shape[1:] == (3, side, side)
    if not fits or pixels.dtype != table.dtype or pixels.device != table.device:
        raise ValueError(f"pixels: expected {expected}, got {describe(pixels)}")
    num_patches = model.encoder.num_patches
    for name, index in masks._asdict().items():
        expected = f"torch.int64 [multiple of {len(pixels)}, K] on {table.device}"
        fits = index.ndim == 2 and index.numel() > 0 and index.shape[0] % len(pixels) == 0
        if not fits or index.dtype != torch.int64 or index.device != table.device:
            raise ValueError(f"masks.{name}: expected {expected}, got {describe(index)}")
        if index.device.type == "cpu":
            wrong = torch.nonzero((index < 0) | (index >= num_patches))
            if len(wrong):
                position = wrong[0].tolist()
                value = index[tuple(position)].item()
                raise ValueError(
                    f"masks.{name}: expected values in [0, {num_patches}), got {value} at {position}"
                )


def describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
