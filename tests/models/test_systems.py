"""V-JEPA, V-JEPA 2, V-JEPA 2.1 and LeJEPA against their published training steps, and what their steps refuse."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jepa_fast import models
from jepa_fast.bench.baselines.lejepa import EagerLeJEPAStep
from jepa_fast.bench.baselines.vjepa import EagerVJEPAStep, mask_distance
from jepa_fast.data.loader import rows_of_masks
from jepa_fast.kernels.sigreg.philox import directions
from jepa_fast.masks import (
    IMAGE_SETS,
    Masks,
    MaskSets,
    MultiBlockMasks,
    Ragged,
    RaggedMasks,
    TubeMasks,
    TubeSet,
)
from jepa_fast.nn.block import set_checkpointing
from jepa_fast.training.step import IJEPAStep
from jepa_fast.training.steps import make_step
from jepa_fast.training.vjepa_step import VJEPA21Step, VJEPAStep, context_weight_at, target_distances

RATES = {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.99}
SMALL: dict[str, Any] = {
    "image_size": 48, "frames": 4, "dim": 48, "depth": 4, "num_heads": 2, "mlp_dim": 96,
    "predictor_depth": 2, "predictor_dim": 48, "predictor_heads": 2,
}  # fmt: skip
GRID = (2, 3, 3)
SETS = (TubeSet(3, (0.15, 0.15)), TubeSet(1, (0.5, 0.5)))
VIDEO = ["vjepa_vitl_224", "vjepa2_vitl_256", "vjepa21_vitg_256"]
LEJEPA = {
    "image_size": 32, "local_size": 16, "dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64,
    "hidden_dim": 48, "embed_dim": 24, "proj_dim": 8,
}  # fmt: skip
SLICES = 32


def noisy(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Vectors that start at zero, or nearly, matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.to(dtype)


def video_model(name: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    torch.manual_seed(0)
    return noisy(models.create(name, **SMALL, **overrides), dtype)


def lejepa_model(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return noisy(models.create("lejepa_vits8_128", **LEJEPA), dtype)


def clips(dtype: torch.dtype = torch.float32, frames: int = 4, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, frames, 48, 48, generator=generator).to(dtype)


def crops(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 6, 3, 32, 32), (3, 6, 3, 16, 16))
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


def masks(step: int = 0, ragged: bool = False) -> MaskSets:
    generator = torch.Generator().manual_seed(step)
    return TubeMasks(GRID, sets=SETS, ragged=ragged).sample(3, step, generator)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("name", VIDEO)
def test_twenty_steps(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model = video_model(name, dtype)
    eager, ours = EagerVJEPAStep(model), make_step(model)
    losses: list[list[float]] = [[], []]
    for number in range(20):
        batch, sets = clips(dtype).roll(5 * number, dims=4), masks(number)
        for step, curve in zip((eager, ours), losses, strict=True):
            curve.append(step.step(batch, sets, **RATES).item())
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert losses[0][-1] < 0.995 * losses[0][0]
    for part in ("encoder", "predictor", "teacher"):
        theirs = getattr(eager, part).state_dict()
        state = getattr(ours, part).state_dict()
        assert state.keys() == theirs.keys()
        for key, value in state.items():
            if dtype == torch.float64:
                torch.testing.assert_close(value, theirs[key], rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_twenty_steps_of_lejepa(dtype: torch.dtype, tolerance: float) -> None:
    model, like = lejepa_model(dtype), torch.zeros(1, dtype=dtype)
    eager = EagerLeJEPAStep(
        model, num_slices=SLICES, directions=lambda step: directions(step, 8, SLICES, like)
    )
    ours = make_step(model, num_slices=SLICES)
    losses: list[list[float]] = [[], []]
    for number in range(20):
        batch = [views.roll(3 * number, dims=4) for views in crops(dtype)]
        for step, curve in zip((eager, ours), losses, strict=True):
            curve.append(step.step(batch, None, **RATES).item())
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert losses[0][-1] < 0.9 * losses[0][0]


def step_gradients(step: Any, batch: Any, sets: Any) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def note(*_: object) -> None:
        for part in ("encoder", "predictor", "head", "projector"):
            if hasattr(step, part):
                for name, parameter in getattr(step, part).named_parameters():
                    if parameter.grad is not None:
                        seen[f"{part}.{name}"] = parameter.grad.double().clone()

    step.optimizer.register_step_pre_hook(note)
    step.step(batch, sets, lr=0.0, weight_decay=0.0, momentum=1.0)
    return seen


@pytest.mark.parametrize("name", [*VIDEO, "lejepa"])
def test_bfloat16_error_is_that_of_eager(name: str) -> None:
    """Of all gradients together: at most twice the distance of eager bfloat16 autocast from float64."""
    if name == "lejepa":
        model, batch, sets = lejepa_model(), crops(), None
        options = {"num_slices": SLICES}

        def drawn(step: int) -> Tensor:
            return directions(step, 8, SLICES, torch.zeros(1))

        theirs: Any = EagerLeJEPAStep(model, precision="bfloat16", directions=drawn, **options)
    else:
        model, batch, sets, options = video_model(name), clips(), masks(), {}
        theirs = EagerVJEPAStep(model, precision="bfloat16")
    wide = [views.double() for views in batch] if isinstance(batch, list) else batch.double()
    exact = step_gradients(make_step(copy.deepcopy(model).double(), **options), wide, sets)
    eager = step_gradients(theirs, batch, sets)
    ours = step_gradients(make_step(model, precision="bfloat16", **options), batch, sets)

    def error(found: dict[str, Tensor]) -> float:
        return sum((found[key] - exact[key]).square().sum().item() for key in exact) ** 0.5

    assert ours.keys() == exact.keys()
    assert 0 < error(ours) < 2 * error(eager)


@pytest.mark.parametrize("name", VIDEO)
def test_plain_operators_compute_the_same(name: str) -> None:
    fused, plain = (make_step(video_model(name), fused=on) for on in (True, False))
    for number in range(3):
        sets = masks(number, ragged=number == 2)
        losses = [step.step(clips(), sets, **RATES).item() for step in (fused, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("name", VIDEO)
def test_ragged_rows_of_one_length_are_cut_rows(name: str) -> None:
    """A batch of one loses nothing by the cut."""
    cut, ragged = (
        TubeMasks(GRID, sets=SETS, ragged=on).sample(1, 3, torch.Generator().manual_seed(0))
        for on in (False, True)
    )
    steps = [make_step(video_model(name, torch.float64)) for _ in range(2)]
    batch = clips(torch.float64, batch=1)
    losses = [
        [step.step(batch, sets, **RATES).item() for _ in range(2)]
        for step, sets in zip(steps, (cut, ragged), strict=True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


@pytest.mark.parametrize("name", VIDEO)
def test_ragged_loss_is_that_of_each_clip_alone(name: str) -> None:
    """Sequences of different lengths do not see each other; the mean is over tokens."""
    step = make_step(video_model(name, torch.float64))
    sampler = TubeMasks(GRID, sets=SETS[:1], ragged=True)
    drawn = (sampler.sample(3, 1, torch.Generator().manual_seed(seed)) for seed in range(20))
    sets = next(sets for sets in drawn if len(set(sets[0].context.lengths)) > 1)
    batch = clips(torch.float64)
    expected = step.loss(batch, sets).item()
    contexts, targets = (part.ids.split(list(part.lengths)) for part in sets[0])
    parts: dict[str, list[float]] = {"targets": [], "contexts": []}
    weight = getattr(step, "context_weight", 0.0)
    for sample in range(3):
        alone = MaskSets([Masks(contexts[sample][None], targets[sample][None])])
        both = step.loss(batch[sample : sample + 1], alone).item()
        if weight:
            step.context_weight = 0.0
            only = step.loss(batch[sample : sample + 1], alone).item()
            step.context_weight = weight
            parts["contexts"].append((both - only) * len(contexts[sample]))
            both = only
        parts["targets"].append(both * len(targets[sample]))
    total = sum(parts["targets"]) / sum(map(len, targets))
    total += sum(parts["contexts"]) / sum(map(len, contexts))
    assert expected == pytest.approx(total, rel=1e-11)


def test_ragged_ijepa_is_each_image_alone() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 64, "dim": 48, "depth": 2, "num_heads": 2, "mlp_dim": 96, "predictor_depth": 2}
    step = IJEPAStep(noisy(models.create("ijepa_vitt8_128", **sizes, predictor_dim=48), torch.float64))
    sampler = MultiBlockMasks(8, num_context=2, num_targets=3, min_keep=3, ragged=True)
    found = sampler.sample(3, 1, torch.Generator().manual_seed(0))
    assert len(set(found.context.lengths)) > 1
    batch = clips(torch.float64)[:, :, 0].repeat(1, 1, 2, 2)[:, :, :64, :64]
    contexts, targets = (part.ids.split(list(part.lengths)) for part in found)
    total, count = 0.0, 0
    for m in range(3):
        for e in range(2):
            for b in range(3):
                c, t = contexts[e * 3 + b], targets[m * 3 + b]
                total += step.loss(batch[b : b + 1], Masks(c[None], t[None])).item() * len(t)
                count += len(t)
    assert step.loss(batch, found).item() == pytest.approx(total / count, rel=1e-11)
    found_loss = [step.step(batch, found, **RATES).item() for _ in range(3)]
    assert found_loss[-1] < found_loss[0]


def test_parts_of_ragged_ijepa_are_the_batch() -> None:
    """Its sampler gives every target of a batch one size; these have their own."""
    torch.manual_seed(0)
    sizes = {"image_size": 48, "dim": 48, "depth": 1, "num_heads": 2, "mlp_dim": 96, "predictor_depth": 1}
    step = IJEPAStep(noisy(models.create("ijepa_vitt8_128", **sizes, predictor_dim=48), torch.float64))
    target = (
        torch.rand(2 * 4, 36, generator=torch.Generator().manual_seed(0))
        < torch.linspace(0.2, 0.6, 8)[:, None]
    )
    context = ~target.view(2, 4, 36).any(0)
    ragged = RaggedMasks(Ragged.of(context.numpy()), Ragged.of(target.numpy()))
    assert_parts_are_the_batch(step, clips(torch.float64, batch=4)[:, :, 0], ragged)


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in VIDEO), (VIDEO[-1], {"by_distance": False})]
)
def test_parts_of_ragged_clips_are_the_batch(name: str, options: dict[str, Any]) -> None:
    step = make_step(video_model(name, torch.float64), **options)
    sets = TubeMasks(GRID, sets=SETS, ragged=True).sample(4, 1, torch.Generator().manual_seed(0))
    assert_parts_are_the_batch(step, clips(torch.float64, batch=4), sets)


def assert_parts_are_the_batch(step: Any, batch: Tensor, ragged: Any) -> None:
    """Loss and gradients of four samples are the means of those of two halves, and of the halves' halves."""
    parameters = [p for name in step.trained for p in getattr(step, name).parameters() if p.requires_grad]

    def of(*parts: tuple[Tensor, Any]) -> list[Tensor]:
        loss = torch.stack([step.loss(*part) for part in parts]).mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]

    def halves(part: tuple[Tensor, Any]) -> list[tuple[Tensor, Any]]:
        samples, sets = part
        number = len(samples)
        rows = [(0, number // 2), (number // 2, number)]
        return [(samples[slice(*ends)], rows_of_masks(sets, number, *ends)) for ends in rows]

    whole = of((batch, ragged))
    two = halves((batch, ragged))
    four = [quarter for half in two for quarter in halves(half)]
    for parts in (two, four):
        for found, expected in zip(of(*parts), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_images_of_vjepa21() -> None:
    """Their own patches, vectors and masks."""
    model = video_model("vjepa21_vitg_256", torch.float64)
    sets = TubeMasks((1, 3, 3), sets=(TubeSet(2, IMAGE_SETS[0].spatial_scale),)).sample(3, 0)
    eager, ours = EagerVJEPAStep(model), make_step(model)
    images = clips(torch.float64, frames=1)
    for _ in range(3):
        expected = eager.step(images, sets, **RATES)
        assert ours.step(images, sets, **RATES).item() == pytest.approx(expected.item(), rel=1e-11)
    before = model.encoder.video_mod_embed.clone()
    ours.step(clips(torch.float64), masks(), **RATES)
    assert not torch.equal(before, model.encoder.video_mod_embed)


@pytest.mark.parametrize("by_distance", [True, False])
def test_context_loss(by_distance: bool) -> None:
    """Its weight, with and without distances, as published."""
    model = video_model("vjepa21_vitg_256", torch.float64)
    eager, ours = EagerVJEPAStep(model), VJEPA21Step(model, by_distance=by_distance)
    eager.by_distance = by_distance
    for weight in (0.0, 0.5, 2.0):
        eager.context_weight = ours.context_weight = weight
        expected = eager.step(clips(torch.float64), masks(), **RATES).item()
        assert ours.step(clips(torch.float64), masks(), **RATES).item() == pytest.approx(expected, rel=1e-11)
    assert [context_weight_at(step) for step in (0, 15_000, 22_500, 30_000, 10**6)] == [0, 0, 0.25, 0.5, 0.5]


def test_distances_are_those_of_every_pair() -> None:
    for grid, batch in (((8, 14, 14), 3), ((1, 16, 16), 2), ((4, 5, 7), 2)):
        sets = TubeMasks(grid, sets=(TubeSet(3, (0.1, 0.2), temporal_scale=(0.2, 0.5)),)).sample(batch, 5)
        context, target = sets[0]
        patches = grid[0] * grid[1] * grid[2]
        place = (target + torch.arange(batch)[:, None] * patches).flatten()
        found = target_distances(place, batch, grid).view(batch, patches).gather(1, context)
        if grid[1] == grid[2]:
            torch.testing.assert_close(found.sqrt(), mask_distance(target, context, grid[1]))
        frame, rest = context // (grid[1] * grid[2]), context % (grid[1] * grid[2])
        points = torch.stack([frame, rest // grid[2], rest % grid[2]], -1).double()
        frame, rest = target // (grid[1] * grid[2]), target % (grid[1] * grid[2])
        aims = torch.stack([frame, rest // grid[2], rest % grid[2]], -1).double()
        pairs = (points[:, :, None] - aims[:, None]).norm(dim=-1).amin(2)
        torch.testing.assert_close(found.double(), pairs, rtol=1e-6, atol=0.0)


def test_only_the_published_mask_tokens_are_trained() -> None:
    """V-JEPA has a token for each set; its successors' code uses the first one for all."""
    for name, used in (("vjepa_vitl_224", {0, 1}), ("vjepa2_vitl_256", {0})):
        step = make_step(video_model(name))
        seen = step_gradients(step, clips(), masks())
        tokens = {int(key.rsplit(".", 1)[1]) for key in seen if "mask_tokens" in key}
        assert tokens == used


@pytest.mark.parametrize("name", [*VIDEO, "lejepa"])
def test_resumed_steps_are_the_same_bits(name: str) -> None:
    make = lejepa_model if name == "lejepa" else lambda: video_model(name)
    batch, sets = (crops(), None) if name == "lejepa" else (clips(), masks())
    options = {"num_slices": SLICES} if name == "lejepa" else {}
    first, second = (make_step(make(), precision="bfloat16", **options) for _ in range(2))
    for _ in range(2):
        first.step(batch, sets, **RATES)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(2):
        assert torch.equal(first.step(batch, sets, **RATES), second.step(batch, sets, **RATES))


@pytest.mark.parametrize("name", VIDEO)
def test_checkpointing_changes_nothing(name: str) -> None:
    kept, again = (make_step(video_model(name), precision="bfloat16") for _ in range(2))
    set_checkpointing(again.model)
    for number in range(3):
        losses = [step.step(clips(), masks(number), **RATES) for step in (kept, again)]
        assert torch.equal(*losses)


def test_clipping_is_of_each_part() -> None:
    step = make_step(video_model("vjepa_vitl_224"))
    step.max_norm = 1e-3
    seen = step_gradients(step, clips(), masks())
    for part in ("encoder", "predictor"):
        squares = [value.square().sum() for key, value in seen.items() if key.startswith(part)]
        assert torch.stack(squares).sum().sqrt().item() == pytest.approx(1e-3, rel=1e-2)


def test_loss_and_update_make_a_step() -> None:
    whole, apart = (make_step(video_model("vjepa2_vitl_256")) for _ in range(2))
    for number in range(2):
        expected = whole.step(clips(), masks(number), **RATES)
        loss = apart.loss(clips(), masks(number))
        apart.backward(loss)
        apart.update(**RATES)
        assert torch.equal(loss, expected)
    for ours, theirs in zip(apart.teacher.parameters(), whole.teacher.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_distilled_model_needs_its_teacher() -> None:
    torch.manual_seed(0)
    student = noisy(models.create("vjepa21_vitb_384", **SMALL, teacher_dim=64))
    with pytest.raises(ValueError, match="teacher: expected an encoder of 64 channels"):
        make_step(student)
    sizes = SMALL | {"dim": 64, "num_heads": 4}
    teacher = models.create("vjepa21_vitg_256", **sizes).encoder
    before = [parameter.clone() for parameter in teacher.parameters()]
    step = make_step(student, teacher=teacher, precision="bfloat16")
    losses = [step.step(clips(), masks(), **RATES).item() for _ in range(8)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_wrong_batches() -> None:
    step = make_step(video_model("vjepa2_vitl_256"))
    assert isinstance(step, VJEPAStep)
    with pytest.raises(ValueError, match=r"batch: expected torch.float32 \[B, 3, 4, 48, 48\] on cpu, got "):
        step.step(clips(frames=2), masks(), **RATES)
    with pytest.raises(ValueError, match="masks: expected one for each mask set, got Masks"):
        step.step(clips(), masks()[0], **RATES)
    wrong = masks()[0]._replace(target=torch.full((3, 2), 18))
    with pytest.raises(ValueError, match=r"masks\[0\].target: expected values in \[0, 18\), got 18"):
        step.step(clips(), MaskSets([wrong]), **RATES)
    lejepa = make_step(lejepa_model(), num_slices=SLICES)
    with pytest.raises(ValueError, match="batch: expected a list of crops"):
        lejepa.step(crops()[0], None, **RATES)
    with pytest.raises(ValueError, match=r"batch\[1\]: expected torch.float32 \[B, 6, 3, 16, 16\]"):
        lejepa.step([crops()[0], crops()[0]], None, **RATES)
    with pytest.raises(ValueError, match="masks: expected None, got MaskSets"):
        lejepa.step(crops(), masks(), **RATES)
    with pytest.raises(
        ValueError, match="model: expected an I-JEPA, a V-JEPA, a V-JEPA 2-AC or a LeJEPA, got"
    ):
        make_step(nn.Linear(2, 2))
