"""The training step of LeJEPA."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jepa_fast.kernels.sigreg.api import sigreg_loss
from jepa_fast.models import LeJEPA
from jepa_fast.nn.fused import Fused
from jepa_fast.training.step import Precision, Step, check_pixels


class LeJEPAStep(Step):
    """One step of LeJEPA (arXiv:2511.08544): no teacher, no stop-gradient, no predictor.

        loss = (1 - weight) * mean over views of |projection - mean of the global views' projections|^2
               + weight * SIGReg of each view's projections, averaged over views

    Squares are averaged over channels and images, too. The directions of SIGReg are drawn from a counter of steps,
    which is part of the state.

    Over a `group` SIGReg is that of all processes' images together; the projector's BatchNorm is one of each process.

    A batch is a list of float32 crops `[V, B, 3, size, size]`, one tensor for each size, the global ones first; there
    are no masks and no momentum.

    Args:
        model: trained in place, on the device and in the dtype it is in.
        precision: dtype of the matrix products. Parameters, LayerNorm, BatchNorm and loss stay in float32.
        fused: which fused ops the model and the step run on: True for all, False for none, or a selection.
        weight: of SIGReg, lambda in the paper.
        num_slices: directions that SIGReg draws.

    Raises:
        ValueError: unknown `precision`.
    """

    model: LeJEPA

    def __init__(
        self,
        model: LeJEPA,
        *,
        precision: Precision = "float32",
        fused: bool | Fused = True,
        weight: float = 0.02,
        num_slices: int = 1024,
    ) -> None:
        parts = {"encoder": model.encoder, "head": model.head, "projector": model.projector}
        super().__init__(model, parts, teacher=None, precision=precision, fused=fused)
        self.weight = weight
        self.num_slices = num_slices
        self.counter = torch.zeros(1, dtype=torch.int64, device=next(model.parameters()).device)
        self._before: list[Tensor] = []  # the statistics of BatchNorm, which a forward pass changes already

    def _check(self, batch: Sequence[Tensor], masks: None) -> None:
        if isinstance(batch, Tensor) or not batch:
            raise ValueError("batch: expected a list of crops [V, B, 3, size, size], one for each size")
        config = self.model.config
        sizes = (config.image_size, config.local_size or config.image_size)
        for number, crops in enumerate(batch):
            side = sizes[min(number, 1)]
            images = crops.shape[1] if crops.ndim > 1 else 0
            if images < 2 or images != batch[0].shape[1]:
                raise ValueError(f"batch[{number}]: expected the same 2 or more images in all, got {images}")
            check_pixels(f"batch[{number}]", crops, (images, 3, side, side), next(self.model.parameters()))
        if masks is not None:
            raise ValueError(f"masks: expected None, got {type(masks).__name__}")

    def _loss(self, batch: Sequence[Tensor], masks: None) -> Tensor:
        if self.guarded and not self._before:
            self._before = [buffer.clone() for buffer in self.model.buffers()]
        projection = self.model(batch).projection
        projection = projection.to(next(self.model.parameters()).dtype)
        centre = projection[: len(batch[0])].mean(0)
        invariance = (projection - centre).square().mean()
        regularity = sigreg_loss(
            projection,
            num_slices=self.num_slices,
            seed=self.counter,
            group=self.group,
            averaged_gradients=True,
            implementation="auto" if self.fused.sigreg else "reference",
        )
        return self.weight * regularity + (1.0 - self.weight) * invariance

    def update(self, *, lr: float, weight_decay: float, momentum: float) -> None:
        """AdamW from the gradients that are there; the next step draws other directions."""
        super().update(lr=lr, weight_decay=weight_decay, momentum=momentum)
        if self._before and self.grad_norm is not None:
            kept = self.grad_norm.isfinite()  # stays on the device
            for buffer, before in zip(self.model.buffers(), self._before, strict=True):
                buffer.copy_(torch.where(kept, buffer, before))
            self._before = []
        self.counter += 1

    def state_dict(self) -> dict[str, Any]:
        """As of every step, and the counter of steps."""
        return {**super().state_dict(), "counter": self.counter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.counter.copy_(state["counter"])
