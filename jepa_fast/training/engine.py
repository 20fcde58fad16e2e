"""A training step as a configuration asks for it: in parts, recomputed, compiled, over processes, as a CUDA graph.

All of it goes round the step: `loss`, `backward` and `update` of `jepa_fast.training.step.Step` are what it uses.
"""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jepa_fast.data.loader import map_tensors, rows_of_masks
from jepa_fast.kernels.adamw_ema.api import AdamWEMA
from jepa_fast.nn.attention import Attention
from jepa_fast.nn.block import MLP, Blocks, set_checkpointing
from jepa_fast.training.config import TrainConfig
from jepa_fast.training.step import Precision, Step, TrainingStep, set_rates
from jepa_fast.training.world import World, gathered, scattered

COMPILER = "inductor"
MOST_GRAPHS = 64  # shapes of a batch; each graph holds its own activations' addresses in one shared pool

StepFactory = Callable[..., TrainingStep]  # called as factory(model, precision=...)


class Engine:
    """Runs `make_step(model, precision=...)` as `config` says, on the processes of `world`.

    `step` trains on a batch, this process's share of it; what it returns is the loss of that share, still on the
    device, whose mean over processes is the loss of the batch. `state_dict` and `load_state_dict` are those of the
    step, with whole tensors whatever the sharding.

    teacher: what the teacher starts as; None is a copy of the model's encoder. Both are moved to the device.

    Raises ValueError, naming the field, for what the step at hand cannot do.
    """

    def __init__(
        self,
        model: nn.Module,
        make_step: StepFactory,
        config: TrainConfig,
        precision: str,
        world: World,
        teacher: nn.Module | None = None,
    ) -> None:
        self.world = world
        model = model.to(world.device)
        teacher = None if teacher is None else teacher.to(world.device)
        self.parts = config.accumulate
        self._pure = precision == "pure_bfloat16"
        self._sharded = config.parallel == "fsdp" and world.size > 1
        products: Precision = "float32" if precision == "float32" else "bfloat16"
        # Copies of the weights are looked up by the tensors that the optimizer knows, which neither FSDP's gathered
        # parameters nor traced ones are. Autocast then makes them.
        copies = not (self._sharded or config.compile)
        wrapper = _Loss(model)
        options: dict[str, Any] = {"precision": products if copies else "float32"}
        if self._sharded:
            if teacher is None and _has_teacher(make_step):
                teacher = copy.deepcopy(model.get_submodule("encoder"))
            shard(wrapper, teacher, world, products)
        options |= {} if teacher is None else {"teacher": teacher}
        self.step_ = make_step(model, **options)
        if isinstance(self.step_, Step):
            self.step_.precision = products
            wrapper.step = self.step_
        else:
            _refuse(config, world, precision)
        self._loss: Callable[[Any, Any], Tensor] = wrapper
        self._wrapper: nn.Module = wrapper
        self._configure(config)
        if world.size > 1 and not self._sharded:
            on = [world.device.index] if world.device.type == "cuda" else None
            self._wrapper = self._loss = nn.parallel.DistributedDataParallel(
                wrapper,
                device_ids=on,
                gradient_as_bucket_view=True,
                find_unused_parameters=cast("Step", self.step_).leaves_out,
            )
        self._graphs = _Graphs(self.step_) if config.cuda_graph and isinstance(self.step_, Step) else None

    def _configure(self, config: TrainConfig) -> None:
        step = self.step_
        if not isinstance(step, Step):
            return
        step.group = dist.group.WORLD if self.world.size > 1 else None
        if config.nonfinite == "skip" and not isinstance(step.optimizer, AdamWEMA):
            raise ValueError("nonfinite: skip needs an optimizer that can leave a step out")
        step.guarded = True
        networks = [network for network in (step.model, step.teacher) if network is not None]
        blocks = [part for network in networks for part in network.modules() if isinstance(part, Blocks)]
        if self._pure:
            for part in blocks:
                part.register_forward_pre_hook(_to_bfloat16)
        if config.checkpoint_activations:
            set_checkpointing(step.model)
        if config.compile:
            for part in blocks:
                part.compile(backend=COMPILER)

    @property
    def grad_norm(self) -> Tensor | None:
        """Of the latest step, still on the device: infinite or NaN says that the gradient is. None if not known."""
        norm = self.step_.grad_norm if isinstance(self.step_, Step) else None
        return None if norm is None else norm.clone()  # the next step writes it anew

    def step(self, batch: Any, masks: Any, rates: dict[str, float]) -> Tensor:
        """Trains on a batch; rates: lr, weight_decay, momentum."""
        if self._graphs is not None:
            return self._graphs.step(batch, masks, rates)
        if not isinstance(self.step_, Step):
            return self.step_.step(batch, masks, **rates)
        if self.parts == 1:
            return self._forward_backward(batch, masks, rates, last=True)
        total = None
        for part, (pixels, rows) in enumerate(_parts(batch, masks, self.parts), 1):
            loss = self._forward_backward(pixels, rows, rates, last=part == self.parts)
            total = loss if total is None else total + loss
        assert total is not None
        return total

    def _forward_backward(self, batch: Any, masks: Any, rates: dict[str, float], *, last: bool) -> Tensor:
        step = cast("Step", self.step_)
        with self._synchronized(last):
            loss = self._loss(batch, masks)
            if self.parts > 1:
                loss = loss / self.parts
            step.backward(loss)
        if last:
            step.update(**rates)
        return loss.detach()

    def _synchronized(self, last: bool) -> Any:
        """Gradients go over to the other processes with the last part of a batch alone."""
        if self.parts == 1 or self.world.size == 1:
            return nullcontext()
        if self._sharded:
            self._wrapper.set_requires_gradient_sync(last)  # type: ignore[operator]
            return nullcontext()
        return nullcontext() if last else cast("nn.parallel.DistributedDataParallel", self._wrapper).no_sync()

    def state_dict(self) -> dict[str, Any]:
        """Of the step. All processes call it together."""
        state = self.step_.state_dict()
        return gathered(state) if self._sharded else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._sharded:
            state = self._as_shards(state)
        self.step_.load_state_dict(state)

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """`state`: the optimizer's among those of `state_dict`."""
        step = cast("Step", self.step_)
        step.optimizer.load_state_dict(self._optimizer_shards(state) if self._sharded else state)

    def _as_shards(self, state: dict[str, Any]) -> dict[str, Any]:
        step = cast("Step", self.step_)
        shards = dict(state)
        for name in step.parts:
            if name == "optimizer":
                continue
            own = getattr(step, name).state_dict()
            shards[name] = {key: scattered(value, own[key]) for key, value in state[name].items()}
        shards["optimizer"] = self._optimizer_shards(state["optimizer"])
        return shards

    def _optimizer_shards(self, state: dict[str, Any]) -> dict[str, Any]:
        groups = cast("Step", self.step_).optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        moments = {number: scattered(value, parameters[number]) for number, value in state["state"].items()}
        return state | {"state": moments}


class _Loss(nn.Module):
    """The loss of a step as a module round its model: what DDP and FSDP wrap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.step: Step | None = None

    def forward(self, batch: Any, masks: Any) -> Tensor:
        assert self.step is not None
        return self.step.loss(batch, masks)


def _has_teacher(make_step: StepFactory) -> bool:
    return "teacher" in inspect.signature(make_step).parameters


def shard(wrapper: nn.Module, teacher: nn.Module | None, world: World, products: Precision) -> None:
    """FSDP2: every attention and MLP is gathered when it is reached; norms, embeddings and tokens stay gathered.

    A block reads the norm of its successor, so norms cannot belong to the block's own unit.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    low = torch.bfloat16 if products == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # It warns of in-place operations on what an attention or MLP returns; `Block` has none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for network in (wrapper, teacher):
        if network is None:
            continue
        for part in network.modules():
            if isinstance(part, Attention | MLP):
                fully_shard(part, mesh=mesh, mp_policy=policy)
        # Without a backward pass nothing else would make the teacher look at its shards again.
        fully_shard(network, mesh=mesh, reshard_after_forward=network is teacher)


def _to_bfloat16(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *others = inputs
    return (x.to(torch.bfloat16) if isinstance(x, Tensor) and x.is_floating_point() else x, *others)


def _parts(batch: Any, masks: Any, number: int) -> Iterator[tuple[Any, Any]]:
    """Equal shares of the samples of a batch, with their masks."""
    samples = batch[0].shape[1] if isinstance(batch, list) else len(batch)  # crops are [V, B, ...]
    if samples % number:
        raise ValueError(
            f"accumulate: expected a divisor of the {samples} samples of a process, got {number}"
        )
    size = samples // number
    for start in range(0, samples, size):
        rows = slice(start, start + size)
        pixels = [views[:, rows] for views in batch] if isinstance(batch, list) else batch[rows]
        yield pixels, rows_of_masks(masks, samples, start, start + size)


def _refuse(config: TrainConfig, world: World, precision: str) -> None:
    """What a step that only has `step` cannot do."""
    asked = {
        "accumulate": config.accumulate > 1, "max_norm": config.max_norm is not None,
        "nonfinite": config.nonfinite == "skip", "checkpoint_activations": config.checkpoint_activations,
        "compile": config.compile, "cuda_graph": config.cuda_graph, "precision": precision == "pure_bfloat16",
        "parallel": world.size > 1,
    }  # fmt: skip
    for name, wanted in asked.items():
        if wanted:
            raise ValueError(f"{name}: {getattr(config, name)} needs engine fast, got {config.engine}")


class _Graphs:
    """The whole step as a CUDA graph for each shape of a batch: captured at its second sight, then replayed."""

    def __init__(self, step: Step) -> None:
        if not isinstance(step.optimizer, AdamWEMA):
            raise ValueError("cuda_graph: expected an optimizer that reads its rates from the device")
        self._step = step
        self._optimizer = step.optimizer
        self._fixed: Any = None  # numbers that a captured step has in it and reads from nowhere
        self._seen: set[Any] = set()
        self._captured: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self._pool: Any = None

    def step(self, batch: Any, masks: Any, rates: dict[str, float]) -> Tensor:
        inputs = list(_tensors((batch, masks)))
        # A weight that changes with every step is never seen twice, and its steps run as they are.
        fixed = getattr(self._step, "context_weight", None), self._step.max_norm
        if fixed != self._fixed:
            self._forget()
            self._fixed = fixed
        shape = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if shape not in self._captured:
            if shape not in self._seen or len(self._captured) >= MOST_GRAPHS:
                self._seen.add(
                    shape
                )  # kernels compile, and the optimizer lays out its tables, outside of a capture
                return self._on_a_side_stream(batch, masks, rates)
            self._capture(shape, batch, masks, rates)
        graph, places, loss = self._captured[shape]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor)
        set_rates(self._optimizer, rates["lr"], rates["weight_decay"])
        for group in self._optimizer.param_groups:
            group["momentum"] = rates["momentum"]
        self._optimizer.upload_hyperparameters()
        graph.replay()
        return loss.clone()

    def _forget(self) -> None:
        """Drops all graphs, which would else take the places of those to come."""
        if self._captured:
            torch.cuda.synchronize()  # the latest replay may not be over
        self._seen.clear()
        self._captured.clear()
        self._pool = None

    def _on_a_side_stream(self, batch: Any, masks: Any, rates: dict[str, float]) -> Tensor:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self._step.step(batch, masks, **rates)
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def _capture(self, shape: Any, batch: Any, masks: Any, rates: dict[str, float]) -> None:
        copies = _copied((batch, masks))
        places = list(_tensors(copies))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss = self._step.step(*copies, **rates)
        self._pool = graph.pool()
        self._captured[shape] = graph, places, loss


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _copied(value: tuple[Any, Any]) -> tuple[Any, Any]:
    batch, masks = value
    pixels = [views.clone() for views in batch] if isinstance(batch, list) else batch.clone()
    return pixels, map_tensors(masks, Tensor.clone)
