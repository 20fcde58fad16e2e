"""The training steps of V-JEPA, V-JEPA 2 and V-JEPA 2.1."""

import copy
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.kernels.latent_loss.api import latent_prediction_loss
from jepa_fast.masks import Masks, Ragged, RaggedMasks
from jepa_fast.models import VJEPA
from jepa_fast.models.vjepa import Predictions
from jepa_fast.nn.fused import Fused
from jepa_fast.training.step import Precision, Step, check_masks, check_pixels, weighted

RAMP = (15_000, 30_000)  # iterations between which V-JEPA 2.1 raises the weight of its context loss


class VJEPAStep(Step):
    """One step of V-JEPA (arXiv:2404.08471) or V-JEPA 2 (2506.09985).

    The loss is the mean over mask sets of the mean distance |prediction - target|, where targets are the teacher's
    tokens after LayerNorm without affine. All mask sets go through encoder and predictor in one call. V-JEPA's
    variance regulariser has the weight 0 in every published configuration and is left out.

    A batch is float32 `[B, 3, frames, image_size, image_size]`; masks are one `Masks` or `RaggedMasks` for each mask
    set, B rows each, on the model's device.

    Args:
        model: trained in place, on the device and in the dtype it is in.
        precision: dtype of the matrix products. Parameters, LayerNorm and loss stay in float32.
        teacher: the target encoder, updated in place; None starts it as a copy of `model.encoder`.
        fused: which fused ops the model and the step run on: True for all, False for none, or a selection.

    Raises:
        ValueError: unknown `precision`; a model with a teacher of another size, and none given.
    """

    model: VJEPA
    teacher: nn.Module

    def __init__(
        self,
        model: VJEPA,
        *,
        precision: Precision = "float32",
        teacher: nn.Module | None = None,
        fused: bool | Fused = True,
    ) -> None:
        frozen = model.config.teacher_dim is not None
        if frozen and teacher is None:
            raise ValueError(
                f"teacher: expected an encoder of {model.config.teacher_dim} channels, which this model is "
                "distilled from, got None"
            )
        teacher = copy.deepcopy(model.encoder) if teacher is None else teacher
        parts: dict[str, nn.Module] = {"encoder": model.encoder, "predictor": model.predictor}
        super().__init__(model, parts, teacher=teacher, precision=precision, fused=fused, frozen=frozen)
        # All mask tokens but the first, and the modality vectors of images (or of clips).
        self.leaves_out = not model.config.token_per_set

    def _check(self, batch: Tensor, masks: Sequence[Masks | RaggedMasks]) -> None:
        config, encoder = self.model.config, self.model.encoder
        image = config.hierarchical and batch.ndim == 5 and batch.shape[2] == 1
        frames, side = 1 if image else config.frames, config.image_size
        check_pixels("batch", batch, (3, frames, side, side), next(self.model.parameters()))
        patches = encoder.num_patches // encoder.config.grid[0] if image else encoder.num_patches
        if not masks or isinstance(masks, Masks | RaggedMasks):
            raise ValueError(f"masks: expected one for each mask set, got {type(masks).__name__}")
        for number, one in enumerate(masks):
            check_masks(f"masks[{number}]", one, len(batch), patches, batch.device)

    def _loss(self, batch: Tensor, masks: Sequence[Masks | RaggedMasks]) -> Tensor:
        sides = self.model.encoder.sides(batch)
        rows = self.model.encoder.embedding(batch).patchify(batch)
        with torch.no_grad():
            target = self.teacher(rows, all_levels=self.model.config.levels > 1, sides=sides)
        predictions = self.model(rows, masks, sides=sides)
        return self._objective(predictions, target, masks)

    def _objective(
        self, predictions: Predictions, target: Tensor, masks: Sequence[Masks | RaggedMasks]
    ) -> Tensor:
        """target: `[B, N, levels * D]`."""
        counts = [one.token_counts[1] for one in masks]
        losses = self._distances(predictions.target, predictions.targets.place, counts, target)
        return mean_over_sets(losses, [one.target for one in masks])

    def _distances(
        self, prediction: Tensor, place: Tensor, counts: Sequence[int], target: Tensor
    ) -> list[Tensor]:
        """The mean distance in each mask set; each level of the target is normalised by itself."""
        return [
            latent_prediction_loss(one[None], rows[None], index[None], kind="l1")
            for one, rows, index in self._by_level(prediction, place, counts, target)
        ]

    def _by_level(
        self, prediction: Tensor, place: Tensor, counts: Sequence[int], target: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each mask set predictions `[T * levels, D]`, target rows `[B * N * levels, D]` and their index."""
        levels = self.model.config.levels
        rows = target.reshape(-1, target.shape[-1] // levels)
        level = torch.arange(levels, device=target.device)
        parts = zip(prediction.split(list(counts)), place.split(list(counts)), strict=True)
        for one, of_set in parts:
            index = of_set if levels == 1 else (of_set[:, None] * levels + level).flatten()
            yield one.reshape(-1, rows.shape[-1]), rows, index


VJEPA2Step = VJEPAStep


class VJEPA21Step(VJEPAStep):
    """One step of V-JEPA 2.1: the loss of V-JEPA 2 over four levels of the encoder, and one of the context tokens.

        loss = mean |prediction - target| + context_weight * mean(|prediction_context - target_context| / d)

    d is the root of the distance, in patches over (frame, row, column), of a context token to the nearest target of its
    mask set. A batch is a clip as for `VJEPAStep`, or images `[B, 3, 1, image_size, image_size]`.

    Args:
        context_weight: of the context loss, an attribute that may be changed between steps; `context_weight_at` is the
            published ramp.
        by_distance: divide by d; the published cool-down does not.
        model, precision, teacher, fused: as for `VJEPAStep`.
    """

    def __init__(
        self,
        model: VJEPA,
        *,
        precision: Precision = "float32",
        teacher: nn.Module | None = None,
        fused: bool | Fused = True,
        context_weight: float = 0.5,
        by_distance: bool = True,
    ) -> None:
        if not model.config.hierarchical:
            raise ValueError(
                "model: expected a V-JEPA 2.1, which predicts context tokens, got one that does not"
            )
        super().__init__(model, precision=precision, teacher=teacher, fused=fused)
        self.context_weight = context_weight
        self.by_distance = by_distance

    def _objective(
        self, predictions: Predictions, target: Tensor, masks: Sequence[Masks | RaggedMasks]
    ) -> Tensor:
        loss = super()._objective(predictions, target, masks)
        if not self.context_weight:  # weight decay still needs gradients of the head, if zeros
            head = self.model.predictor.predictor_proj_context
            return loss + 0.0 * (head.weight.sum() + head.bias.sum())
        assert predictions.context is not None
        counts = [one.token_counts[0] for one in masks]
        place = predictions.contexts.place
        contexts = [one.context for one in masks]
        if not self.by_distance:
            losses = self._distances(predictions.context, place, counts, target)
            return loss + self.context_weight * mean_over_sets(losses, contexts)
        _, rows, columns = self.model.encoder.config.grid
        grid = (target.shape[1] // (rows * columns), rows, columns)
        targets = predictions.targets.place.split([one.token_counts[1] for one in masks])
        losses = []
        parts = self._by_level(predictions.context, place, counts, target)
        for (one, table, index), here, there in zip(parts, place.split(counts), targets, strict=True):
            distance = target_distances(there, len(target), grid)[here].sqrt()
            with torch.no_grad():
                wanted = F.layer_norm(
                    table[index].float() if table.dtype == torch.bfloat16 else table[index], table.shape[-1:]
                )
                weight = distance.reciprocal().repeat_interleave(self.model.config.levels)[:, None]
            losses.append(((one - wanted).abs() * weight.to(wanted.dtype)).mean())
        return loss + self.context_weight * mean_over_sets(losses, contexts)


def mean_over_sets(losses: Sequence[Tensor], indices: Sequence[Tensor | Ragged]) -> Tensor:
    """losses: of each mask set, the mean over the tokens of its index; see `weighted`."""
    return torch.stack([weighted(*pair) for pair in zip(losses, indices, strict=True)]).mean()


def target_distances(place: Tensor, batch_size: int, grid: tuple[int, int, int]) -> Tensor:
    """float32 `[B * frames * rows * columns]`: how far each patch is from the nearest target of its sample.

    place: int64 `[T]`, sample * patches + patch of each target. Infinite in a sample without targets.

    The exact Euclidean distance transform, axis by axis (Felzenszwalb and Huttenlocher 2012, section 2): the least over
    the targets of a line, then of a plane, then of the clip, of the squared distance; nothing of the size context times
    targets exists.
    """
    far = torch.full((batch_size * grid[0] * grid[1] * grid[2],), torch.inf, device=place.device)
    far[place] = 0.0
    squared = far.view(batch_size, *grid)
    for axis, side in enumerate(grid, start=1):
        steps = torch.arange(side, device=place.device, dtype=torch.float32)
        between = (steps[:, None] - steps).square()  # [to, from]
        squared = (squared.movedim(axis, -1)[..., None, :] + between).amin(-1).movedim(-1, axis)
    return squared.sqrt().flatten()


def context_weight_at(step: int, weight: float = 0.5, ramp: tuple[int, int] = RAMP) -> float:
    """The weight of V-JEPA 2.1's context loss at a step, from 0: 0, rising linearly over `ramp`, `weight`."""
    begin, end = ramp
    return weight if step >= end else weight * max((step - begin) / (end - begin), 0.0)
