"""Training steps: what a loop asks of one, what all of them share, and the step of I-JEPA."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from jepa_fast.kernels.adamw_ema.api import AdamWEMA
from jepa_fast.kernels.ema.api import ema_update_
from jepa_fast.kernels.latent_loss.api import latent_prediction_loss
from jepa_fast.kernels.runtime.products import using_copies
from jepa_fast.masks import Masks, Ragged, RaggedMasks
from jepa_fast.models import IJEPA
from jepa_fast.models.ijepa import ragged_target_places
from jepa_fast.nn.fused import Fused, set_fused

Precision = Literal["float32", "bfloat16"]

PARTS = ("encoder", "predictor", "teacher", "optimizer")


class TrainingStep(Protocol):
    """What a training loop asks of a step, and of a baseline in its place.

    batch: pixels in float32 (or float64, as the model) on the model's device: a tensor for I-JEPA and the V-JEPAs, a
    list of tensors, one for each crop size, for LeJEPA. masks: what the sampler of the system gives; None for LeJEPA.
    """

    def step(self, batch: Any, masks: Any, *, lr: float, weight_decay: float, momentum: float) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Step:
    """Forward, backward, AdamW, and the moving average of the teacher: what the steps of all systems share.

    A system says how its loss is formed, `_loss`. `step` is `loss(...).backward()` and then `update(...)`; a loop that
    accumulates gradients or reduces them over processes calls these itself.

    Args:
        model: trained in place, on the device and in the dtype it is in.
        parts: the trained parts of the model by name, in the order of the published parameter groups.
        teacher: the network that follows the part `encoder`; None where the system has none.
        frozen: the teacher stays as it is.
        precision: dtype of the matrix products. Parameters, LayerNorm and loss stay in float32.
        fused: which fused ops the model and the step run on: True for all, False for none, or a selection.

    Raises:
        ValueError: unknown `precision`.
    """

    encoder: nn.Module
    teacher: nn.Module | None
    optimizer: torch.optim.Optimizer
    max_norm: float | None = None
    """Gradients of each part are scaled down to this norm; may be changed between steps."""
    leaves_out: bool = False
    """Some trained parameters have no part in a loss, and no gradient; which ones may change from step to step."""
    guarded: bool = False
    """A step whose gradient is not finite changes nothing, if the optimizer can leave it out; see `grad_norm`."""
    group: ProcessGroup | None = None
    """Processes that hold one batch together and average their gradients, for losses that couple its samples."""

    def __init__(
        self,
        model: nn.Module,
        parts: dict[str, nn.Module],
        *,
        teacher: nn.Module | None,
        precision: Precision = "float32",
        fused: bool | Fused = True,
        frozen: bool = False,
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision: expected 'float32' or 'bfloat16', got {precision!r}")
        self.model = model
        self.precision = precision
        self.fused = fused if isinstance(fused, Fused) else Fused() if fused else Fused.none()
        self.trained = parts
        self.teacher = teacher
        self.frozen = frozen
        for name, part in parts.items():
            setattr(self, name, part)
        networks = [model] if teacher is None else [model, teacher]
        if teacher is not None:
            teacher.requires_grad_(False)
        for network in networks:
            set_fused(network, self.fused)
        self.parts = (*parts, *([] if teacher is None else ["teacher"]), "optimizer")
        groups = parameter_groups(*parts.values())
        self._copies: _Copies | None = None
        self._norm: Tensor | None = None
        if self.fused.adamw_ema:
            copies = torch.bfloat16 if precision == "bfloat16" else None
            self.optimizer = AdamWEMA(groups, teacher=self._pairs(), copies=copies)
            if copies is not None:
                followed = [model] if frozen else networks
                still: list[Tensor] = [] if teacher is None or not frozen else list(teacher.parameters())
                self._copies = _Copies(
                    self.optimizer, [p for net in followed for p in net.parameters()], still
                )
        else:
            fusible = next(model.parameters()).device.type in ("cpu", "cuda")
            self.optimizer = torch.optim.AdamW(groups, fused=fusible)

    def _pairs(self) -> list[tuple[Tensor, Tensor]] | None:
        """Every parameter of the teacher with the one it follows."""
        if self.teacher is None or self.frozen:
            return None
        return list(zip(self.teacher.parameters(), self.encoder.parameters(), strict=True))

    def _loss(self, batch: Any, masks: Any) -> Tensor:
        raise NotImplementedError

    def _check(self, batch: Any, masks: Any) -> None:
        """Raises ValueError where a batch does not fit the model."""

    def step(self, batch: Any, masks: Any, *, lr: float, weight_decay: float, momentum: float) -> Tensor:
        """Trains on one batch.

        Args:
            batch, masks: see the class.
            lr, weight_decay: of AdamW in this step.
            momentum: of the teacher, teacher = momentum * teacher + (1 - momentum) * encoder.

        Returns:
            The loss before the update: a float32 scalar without gradient, on the model's device.

        Raises:
            ValueError: a tensor of another shape, dtype or device.
        """
        loss = self.loss(batch, masks)
        self.backward(loss)
        self.update(lr=lr, weight_decay=weight_decay, momentum=momentum)
        return loss.detach()

    def loss(self, batch: Any, masks: Any) -> Tensor:
        """The loss of a batch, to be differentiated. See `step`."""
        self._check(batch, masks)
        device = next(self.model.parameters()).device.type
        autocast = torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16")
        with autocast, self._current_copies():
            return self._loss(batch, masks)

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()`, in which recomputed layers find the low-precision copies of their weights."""
        with self._current_copies():
            loss.backward()

    def update(self, *, lr: float, weight_decay: float, momentum: float) -> None:
        """AdamW and the teacher's moving average from the gradients that are there, which are then dropped."""
        if self.max_norm is not None:
            for name in self.trained:
                nn.utils.clip_grad_norm_(getattr(self, name).parameters(), self.max_norm)
        set_rates(self.optimizer, lr, weight_decay)
        if isinstance(self.optimizer, AdamWEMA):
            if self.guarded:
                self.optimizer.nonfinite = "skip"
            for group in self.optimizer.param_groups:
                group["momentum"] = momentum
        elif self.guarded:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            self._norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.optimizer.step()
        if self._copies is not None:
            self._copies.note()
        self.optimizer.zero_grad()
        pairs = self._pairs()
        if pairs is not None and not isinstance(self.optimizer, AdamWEMA):
            ema_update_([teacher for teacher, _ in pairs], [student for _, student in pairs], momentum)

    @property
    def grad_norm(self) -> Tensor | None:
        """Norm of all gradients of the latest step if it was `guarded`, after clipping, a scalar on their device."""
        if not self.guarded:
            return None
        return self.optimizer.grad_norm if isinstance(self.optimizer, AdamWEMA) else self._norm

    def _current_copies(self) -> AbstractContextManager[None]:
        return using_copies(None if self._copies is None else self._copies.current())

    def state_dict(self) -> dict[str, Any]:
        """State dicts of the parts (encoder, predictor, teacher, optimizer) by name; tensors are not copied."""
        return {part: getattr(self, part).state_dict() for part in self.parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned."""
        for part in self.parts:
            getattr(self, part).load_state_dict(state[part])


class IJEPAStep(Step):
    """One step of I-JEPA (arXiv:2301.08243): forward, backward, AdamW, and the moving average of the teacher.

    The loss is the smooth-L1 distance of the predictions to the teacher's tokens after LayerNorm without affine.
    It is optimized by AdamW with PyTorch's betas and eps; weight decay is for parameters of two or more dimensions.

    A batch is float32 `[B, 3, image_size, image_size]`; masks are int64 patch indices, mask-major: context
    `[E * B, Nc]`, target `[M * B, Np]`, both on the model's device.

    Args:
        model: trained in place, on the device and in the dtype it is in.
        precision: dtype of the matrix products. Parameters, residual streams, LayerNorm and loss stay in float32.
        teacher: the target encoder, updated in place; None starts it as a copy of `model.encoder`.
        fused: which fused ops the model and the step run on: True for all, False for none, or a selection.

    Raises:
        ValueError: unknown `precision`.
    """

    model: IJEPA
    teacher: nn.Module

    def __init__(
        self,
        model: IJEPA,
        *,
        precision: Precision = "float32",
        teacher: nn.Module | None = None,
        fused: bool | Fused = True,
    ) -> None:
        teacher = copy.deepcopy(model.encoder) if teacher is None else teacher
        parts: dict[str, nn.Module] = {"encoder": model.encoder, "predictor": model.predictor}
        super().__init__(model, parts, teacher=teacher, precision=precision, fused=fused)

    def _check(self, batch: Tensor, masks: Masks | RaggedMasks) -> None:
        check_batch(batch, masks, self.model)

    def _loss(self, batch: Tensor, masks: Masks | RaggedMasks) -> Tensor:
        patches = self.model.encoder.patch_embed.patchify(batch)
        with torch.no_grad():
            target = self.teacher(patches)
        prediction = self.model(patches, masks)
        if isinstance(masks, RaggedMasks):
            place = ragged_target_places(masks, len(batch), target.shape[1])
            loss = latent_prediction_loss(prediction[None], target.flatten(0, 1)[None], place[None])
            return weighted(loss, masks.target)
        # Row (m * E + e) * B + b of the predictions is about target mask m of image b.
        by_mask = masks.target.unflatten(0, (-1, 1, len(batch)))
        index = by_mask.expand(-1, len(masks.context) // len(batch), -1, -1).flatten(0, 2)
        return latent_prediction_loss(prediction, target, index)


def weighted(mean: Tensor, index: Tensor | Ragged) -> Tensor:
    """`mean`, a loss over the tokens of `index`, such that equal parts of a batch average to the loss of the whole."""
    return mean * index.weight if isinstance(index, Ragged) else mean


class _Copies:
    """The optimizer's low-precision copies, written anew where a tensor was changed by other means than its step."""

    def __init__(self, optimizer: AdamWEMA, tensors: list[Tensor], still: list[Tensor]) -> None:
        """still: tensors that the optimizer does not know, and nothing changes."""
        self.optimizer, self.tensors = optimizer, tensors
        self.still = {tensor: tensor.to(torch.bfloat16) for tensor in still}
        self.note()

    def note(self) -> None:
        """The copies are right now."""
        self.versions = [tensor._version for tensor in self.tensors]

    def current(self) -> Callable[[Tensor], Tensor]:
        """Gives the copy of a parameter."""
        if self.versions != [tensor._version for tensor in self.tensors]:
            self.optimizer.refresh_copies()
            self.note()
        return self._copy_of if self.still else self.optimizer.copy_of

    def _copy_of(self, tensor: Tensor) -> Tensor:
        return self.still[tensor] if tensor in self.still else self.optimizer.copy_of(tensor)


def parameter_groups(*parts: nn.Module) -> list[dict[str, Any]]:
    """The published parameter groups in their order, so that optimizer states can be exchanged.

    Weights of the encoder, weights of the predictor, then what has one dimension (biases and LayerNorm) in each,
    without weight decay. The position tables are in the lists, too; they have no gradient and do not change.
    """
    halves = [list(part.parameters()) for part in parts]
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


def check_batch(pixels: Tensor, masks: Masks | RaggedMasks, model: IJEPA) -> None:
    """Raises ValueError where a batch does not fit the model; index values are read on the CPU alone."""
    side = model.config.image_size
    check_pixels("pixels", pixels, (3, side, side), next(model.parameters()))
    check_masks("masks", masks, len(pixels), model.encoder.num_patches, pixels.device)


def check_pixels(name: str, pixels: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raises ValueError unless pixels are `[B, *shape]`, B at least 1, in the dtype and on the device of `like`."""
    expected = f"{like.dtype} [B, {', '.join(map(str, shape))}] on {like.device}"
    fits = isinstance(pixels, Tensor) and pixels.ndim == len(shape) + 1 and pixels.shape[0] > 0
    if not fits or pixels.shape[1:] != shape or pixels.dtype != like.dtype or pixels.device != like.device:
        got = describe(pixels) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ValueError(f"{name}: expected {expected}, got {got}")


def check_masks(
    name: str, masks: Masks | RaggedMasks, batch_size: int, num_patches: int, device: torch.device
) -> None:
    """Raises ValueError where indices do not fit; their values are read on the CPU alone."""
    for part, index in masks._asdict().items():
        if isinstance(index, Ragged):
            fits = len(index.lengths) > 0 and len(index.lengths) % batch_size == 0 and min(index.lengths) > 0
            if not fits or sum(index.lengths) != len(index.ids) or len(index.rows) != len(index.ids):
                raise ValueError(
                    f"{name}.{part}: expected a multiple of {batch_size} rows of at least 1 token, got "
                    f"{len(index.lengths)} rows of {sum(index.lengths)} tokens and {len(index.ids)} ids"
                )
            index = index.ids[None]
        else:
            expected = f"torch.int64 [multiple of {batch_size}, K] on {device}"
            fits = index.ndim == 2 and index.numel() > 0 and index.shape[0] % batch_size == 0
            if not fits or index.dtype != torch.int64 or index.device != device:
                raise ValueError(f"{name}.{part}: expected {expected}, got {describe(index)}")
        if index.device.type == "cpu":
            wrong = torch.nonzero((index < 0) | (index >= num_patches))
            if len(wrong):
                position = wrong[0].tolist()
                value = index[tuple(position)].item()
                raise ValueError(
                    f"{name}.{part}: expected values in [0, {num_patches}), got {value} at {position}"
                )


def describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
