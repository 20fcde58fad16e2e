"""What goes round a step: parts, recomputation, compilation, precision, guards, and what it costs the host."""

import builtins
import io
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from jepa_fast.nn.block import Blocks
from jepa_fast.training import engine, loop
from jepa_fast.training.checkpoint import latest_checkpoint, load_checkpoint
from jepa_fast.training.flops import network_flops, step_flops
from jepa_fast.training.lejepa_step import LeJEPAStep
from jepa_fast.training.log import MOST_SKIPPED
from jepa_fast.training.step import IJEPAStep
from jepa_fast.training.systems import make_system

Train = Callable[..., Any]
SMALL = {"depth": 1, "predictor_depth": 1, "predictor_dim": 96}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_parts_of_a_step_are_the_step(train_small: Train, precision: str) -> None:
    whole = train_small(output=None, precision=precision)
    parts = train_small(output=None, precision=precision, accumulate=4)
    assert parts.losses == pytest.approx(whole.losses, rel=2e-4 if precision == "float32" else 2e-2)


def test_recomputed_blocks_give_the_same_bits(train_small: Train) -> None:
    assert train_small(output=None, checkpoint_activations=True).losses == train_small(output=None).losses


def test_compiled_networks_give_the_same_losses(train_small: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tracing is what our code takes part in; what a backend makes of the graphs is its own.
    monkeypatch.setattr(engine, "COMPILER", "eager")
    compiled = train_small(output=None, steps=2, compile=True)
    assert compiled.losses == pytest.approx(train_small(output=None, steps=2).losses, rel=2e-4)


def test_pure_bfloat16_keeps_float32_weights_alone(
    train_small: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: set[torch.dtype] = set()
    forward = Blocks._call
    monkeypatch.setattr(
        Blocks,
        "_call",
        lambda self, block, *inputs: streams.add(inputs[1].dtype) or forward(self, block, *inputs),
    )
    pure = train_small(output=None, precision="pure_bfloat16")
    assert streams == {torch.bfloat16}
    assert {p.dtype for p in pure.step.model.parameters()} == {torch.float32}
    moments = [value["exp_avg"].dtype for value in pure.step.optimizer.state.values()]
    assert set(moments) == {torch.float32}
    assert pure.losses == pytest.approx(train_small(output=None).losses, rel=3e-2)


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if name.startswith(("aten._local_scalar_dense", "aten.is_nonzero", "aten.nonzero")):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_step_waits_for_the_device(
    train_small: Train, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Between reports nothing is read back: neither a loss nor a norm.

    On the CPU alone, where it is free, the step looks at the values of the masks and the loss at its upstream gradient;
    neither is done here.
    """

    def plain_loss(prediction: torch.Tensor, target: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        rows = F.layer_norm(target.float(), target.shape[-1:]).repeat(len(index) // len(target), 1, 1)
        return F.smooth_l1_loss(prediction.float(), rows.gather(1, index[..., None].expand_as(prediction)))

    monkeypatch.setattr("jepa_fast.training.step.check_batch", lambda *inputs: None)
    monkeypatch.setattr("jepa_fast.training.step.latent_prediction_loss", plain_loss)
    counts: list[list[str]] = []
    step = loop._train_step

    def counted(*inputs: Any) -> Any:
        with Reads() as reads:
            record = step(*inputs)
        counts.append(reads.found)
        return record

    monkeypatch.setattr(loop, "_train_step", counted)
    train_small(output=None, precision=precision, nonfinite="skip", max_norm=1.0)
    assert len(counts) == 6
    assert counts[2:] == [[]] * 4  # the first two lay out the optimizer


def test_the_log_does_not_look_at_losses_between_reports(
    train_noting: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    flush = loop.TrainingLog.flush
    monkeypatch.setattr(
        loop.TrainingLog, "flush", lambda self: looked.append(len(self._pending)) or flush(self)
    )
    add = loop.TrainingLog.add

    def counted(self: Any, *inputs: Any) -> None:
        with Reads() as reads:
            add(self, *inputs)
        assert reads.found == []

    monkeypatch.setattr(loop.TrainingLog, "add", counted)
    train_noting(output=None, log_every=4)
    assert looked == [4, 2]


def poisoned(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Steps, counted from 1, whose pixels are not numbers."""
    original = loop._train_step

    def train_step(engine: Any, plan: Any, system: Any, raw: Any, step: int, world: Any) -> Any:
        if step + 1 in steps:
            raw.parameters[0][0, 0, 5] = math.nan  # brightness of the first picture
        return original(engine, plan, system, raw, step, world)

    monkeypatch.setattr(loop, "_train_step", train_step)


def test_a_loss_that_is_not_finite_is_skipped_on_request(
    train_small: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: io.StringIO
) -> None:
    poisoned(monkeypatch, {3})
    result = train_small(nonfinite="skip", colour=1.0, log_every=3)
    assert [math.isfinite(loss) for loss in result.losses] == [True, True, False, True, True, True]
    assert result.skipped_steps == 1
    assert int(result.step.optimizer.skipped_steps) == 1
    assert "skipped 1" in log.getvalue()
    assert all(p.isfinite().all() for p in result.step.model.parameters())
    assert '"step": 3, "loss": null' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_losses_that_stay_so_end_the_run(train_small: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, set(range(2, 100)))
    with pytest.raises(
        loop.NonFiniteLossError, match=rf"the {MOST_SKIPPED}th in a row; last checkpoint: None"
    ):
        train_small(nonfinite="skip", colour=1.0, output=None, steps=40)


class PoisonedGradient(IJEPAStep):
    """Finite losses, whose gradients are not numbers in the steps `bad`, counted from 1."""

    bad: tuple[int, ...] = ()
    done = 0

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(loss)
        self.done += 1
        if self.done in self.bad:
            next(p for p in self.predictor.parameters() if p.grad is not None).grad[0] = math.nan


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [3, 6], ids=["amid", "the last"])
def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(
    train_noting: Train, tmp_path: Path, max_norm: float | None, fused: bool, bad: int
) -> None:
    factory = type("Poisoned", (PoisonedGradient,), {"bad": (bad,)})
    with pytest.raises(
        loop.NonFiniteLossError,
        match=f"the gradient's norm is nan at step {bad}; last checkpoint: .*{bad - 1}.safe",
    ):
        train_noting(partial(factory, fused=fused), checkpoint_every=1, max_norm=max_norm)
    saved = load_checkpoint(latest_checkpoint(tmp_path / "run"))
    assert saved["step"] == bad - 1
    for part in ("encoder", "predictor", "teacher"):
        assert all(tensor.isfinite().all() for tensor in saved["training"][part].values())


def test_steps_skipped_for_their_gradient_are_counted(train_noting: Train, log: io.StringIO) -> None:
    once = type("Once", (PoisonedGradient,), {"bad": (3,)})
    result = train_noting(once, output=None, nonfinite="skip", log_every=3)
    assert result.skipped_steps == 1
    assert all(math.isfinite(loss) for loss in result.losses)
    assert "skipped 1" in log.getvalue()
    always = type("Always", (PoisonedGradient,), {"bad": tuple(range(2, 100))})
    with pytest.raises(
        loop.NonFiniteLossError,
        match=rf"the gradient's norm is nan at step {MOST_SKIPPED + 1}, the {MOST_SKIPPED}th",
    ):
        train_noting(always, output=None, nonfinite="skip", steps=40, log_every=1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_step_of_lejepa_leaves_its_statistics(
    config: Any, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    poisoned(monkeypatch, {2})
    statistics: list[list[torch.Tensor]] = []
    update = LeJEPAStep.update

    def noted(self: LeJEPAStep, **rates: float) -> None:
        update(self, **rates)
        statistics.append([buffer.clone() for buffer in self.model.buffers()])

    monkeypatch.setattr(LeJEPAStep, "update", noted)
    small = {
        "dim": 48,
        "depth": 1,
        "num_heads": 2,
        "mlp_dim": 96,
        "embed_dim": 24,
        "hidden_dim": 32,
        "proj_dim": 8,
    }
    result = loop.train(
        config(
            model="lejepa_vits8_128",
            model_options=small,
            image_size=32,
            local_size=16,
            sigreg_slices=16,
            colour=1.0,
            steps=3,
            output=None,
            nonfinite="skip",
            accumulate=accumulate,
        )
    )
    assert result.skipped_steps == 1
    first, second, third = statistics
    assert len(first) == 6
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(b.isfinite().all() and not torch.equal(a, b) for a, b in zip(second, third, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 2}, "accumulate: 2 needs engine fast"),
        ({"compile": True}, "compile: True needs engine fast"),
        ({"nonfinite": "skip"}, "nonfinite: skip needs engine fast"),
        ({"max_norm": 1.0}, "max_norm: 1.0 needs engine fast"),
        ({"precision": "pure_bfloat16"}, "precision: pure_bfloat16 needs engine fast"),
        ({"cuda_graph": True}, "cuda_graph: expected one process on CUDA, got 1 on cpu"),
    ],
)
def test_what_a_step_cannot_do_is_refused(train_noting: Train, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_noting(output=None, **changes)


def test_scalars_for_tensorboard(train_noting: Train, tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    straight = train_noting(tensorboard=True, checkpoint_every=4)
    (tmp_path / "run" / "step_00000006.safetensors").unlink()
    train_noting(tensorboard=True, resume="latest")
    events = accumulator.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert {"loss", "lr", "images_per_s", "tokens_per_s"} <= set(events.Tags()["scalars"])
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx(dict(enumerate(straight.losses, 1)))


def test_tensorboard_that_is_missing_is_named(train_noting: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fail(name: str, *inputs: Any, **options: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *inputs, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(
        ValueError, match=r"tensorboard: it is not installed; `pip install 'jepa-fast\[tensorboard\]'"
    ):
        train_noting(tensorboard=True)


def test_operations_are_counted_by_hand(config: Any) -> None:
    system = make_system(config(model_options=SMALL, image_size=80))
    encoder, predictor = system.model.encoder, system.model.predictor
    # One block of width 192 and an MLP of 768: 12 * 192**2 weights; 4 * 192 * N for attention.
    assert network_flops(encoder, 2, 100) == 2 * 100 * (2 * 12 * 192**2 + 4 * 192 * 100)
    masks = system.sampler(4, 0, torch.Generator().manual_seed(0))
    tokens, flops = step_flops(system.model, True, torch.zeros(4, 3, 80, 80), masks)
    context, target = masks.context.shape[1], masks.target.shape[1]
    assert tokens == 4 * 100 + 4 * context
    teacher = network_flops(encoder, 4, 100) + 2 * 4 * 100 * 192 * 192
    student = network_flops(encoder, 4, context) + network_flops(predictor, 16, context + target)
    assert flops == teacher + 3 * student


def test_the_norm_is_limited_from_its_step_on(train_small: Train) -> None:
    free = train_small(output=None, lr=3e-3)
    always = train_small(output=None, lr=3e-3, max_norm=1e-3)
    late = train_small(output=None, lr=3e-3, max_norm=1e-3, max_norm_start=3)
    assert always.losses[1:] != free.losses[1:]
    assert late.losses[:4] == free.losses[:4]  # that of step 3 is from before its update
    assert late.losses[4:] != free.losses[4:]


def test_graphs_with_another_limit_of_the_norm_are_captured_anew(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old ones go, or there would soon be no place for new ones."""
    system = make_system(config(model_options=SMALL, image_size=80))
    step = system.step(system.model)
    events: list[tuple[str, float | None]] = []

    class Graph:
        def __init__(self) -> None:
            self.max_norm = step.max_norm

        def replay(self) -> None:
            events.append(("replay", self.max_norm))

    def capture(self: Any, shape: Any, batch: Any, masks: Any, rates: Any) -> None:
        events.append(("capture", step.max_norm))
        self._captured[shape] = Graph(), list(engine._tensors((batch, masks))), torch.zeros(())

    def run(self: Any, batch: Any, masks: Any, rates: Any) -> torch.Tensor:
        events.append(("run", step.max_norm))
        return torch.zeros(())

    monkeypatch.setattr(engine, "MOST_GRAPHS", 1)
    monkeypatch.setattr(engine._Graphs, "_capture", capture)
    monkeypatch.setattr(engine._Graphs, "_on_a_side_stream", run)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append(("wait", step.max_norm)))
    graphs = engine._Graphs(step)
    masks = system.sampler(4, 0, torch.Generator().manual_seed(0))
    for step.max_norm in (None, None, None, 10.0, 10.0, 10.0):
        graphs.step(torch.zeros(4, 3, 80, 80), masks, {"lr": 0.0, "weight_decay": 0.0, "momentum": 1.0})
    assert events == [
        ("run", None), ("capture", None), ("replay", None), ("replay", None), ("wait", 10.0),
        ("run", 10.0), ("capture", 10.0), ("replay", 10.0), ("replay", 10.0),
    ]  # fmt: skip


@pytest.mark.gpu
def test_captured_steps_limit_the_norm_from_its_step_on(train_small: Train) -> None:
    options: dict[str, Any] = {
        "output": None, "device": "cuda", "precision": "bfloat16", "steps": 60, "workers": 0, "max_norm": 1e-3,
        "max_norm_start": 30, "lr": 3e-3,
    }  # fmt: skip
    plain = train_small(**options)
    assert train_small(**options, cuda_graph=True).losses == pytest.approx(plain.losses, rel=2e-2)


@pytest.mark.gpu
def test_a_captured_step_trains_as_the_step(train_small: Train) -> None:
    """Every shape of a batch is captured at its second sight; the rates of each step reach its replay."""
    plain = train_small(output=None, device="cuda", precision="bfloat16", steps=40, workers=0)
    captured = train_small(
        output=None, device="cuda", precision="bfloat16", steps=40, workers=0, cuda_graph=True
    )
    assert captured.losses == pytest.approx(plain.losses, rel=2e-2)


@pytest.mark.gpu
def test_no_step_waits_for_the_gpu(train_small: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    step = loop._train_step

    def strict(*inputs: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error" if inputs[4] > 2 else "default")
        try:
            return step(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "_train_step", strict)
    assert len(train_small(output=None, device="cuda", precision="bfloat16").losses) == 6
