"""`AdamWEMA`: AdamW that moves the teacher and writes the low-precision copies in the same pass."""

from collections.abc import Callable
from itertools import repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..runtime.choice import Explanation
from . import plan as plans
from .check import check_clipping, check_gradient, check_hyperparameters
from .pairs import Pairs, Teacher, check_pairs, pair
from .shards import is_sharded, local, norm_reduction
from .step import OPERATION, increment_versions, new_report, prepare, raise_if_not_finite, run_
from .tensors import Tensors
from .work import Report, Work, copy_device_values_, hyperparameter_table

# What torch.optim.AdamW keeps in a parameter group beyond the numbers, so that either loads the other's state.
_FOREIGN_DEFAULTS: dict[str, Any] = {
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}


class AdamWEMA(Optimizer):
    """AdamW whose step also moves a teacher towards the new parameters and writes low-precision copies of both:

        m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
        p <- (1 - lr wd) p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
        teacher <- momentum * teacher + (1 - momentum) * p

    (AdamW: arXiv 1711.05101, algorithm 2, as torch.optim.AdamW computes it; teacher: arXiv 2006.07733, section 3.1)
    in one parallel region on the CPU and one pass over memory on CUDA, for all parameter groups together.

    params, lr, betas, eps, weight_decay: as of torch.optim.AdamW, on one device. Real floating-point parameters of any
        dtype; the kernels serve float32. lr and weight_decay may be one-element tensors.
    teacher: one tensor per parameter in their order, with None for one that has no teacher; or a mapping
        {student: teacher}; or (teacher, student) pairs. In the last two forms a student need not be a parameter of the
        optimizer: frozen parameters and buffers are averaged with the first group's momentum, and copied where they are
        not floating point. A parameter group may have a "teacher" of its own, too, in any of the forms.
    momentum: of the teacher, in [0, 1]; a number or a one-element tensor. Kept in the groups as "momentum", to be
        scheduled like "lr".
    copies: torch.bfloat16 or torch.float16 makes a copy of every parameter and teacher in that dtype, and every step
        writes it; `copy_of(tensor)` returns it. `refresh_copies()` after changing the originals otherwise.
    max_norm: clips the global norm of the gradients as torch.nn.utils.clip_grad_norm_ does, without changing the
        gradients themselves. `grad_norm` is the norm before clipping.
    nonfinite: what a step does about an infinite or NaN norm: "propagate" goes on; "skip" leaves everything untouched,
        t included, and adds one to `skipped_steps`, without waiting for the device; "raise" leaves everything
        untouched and raises RuntimeError.
    implementation: "auto", "triton", "native" or "reference".

    A parameter without gradient is not stepped, but its teacher follows it. `state_dict()` has torch.optim.AdamW's keys
    and either loads the other's; teacher and copies are not part of it. DTensor parameters (FSDP2) are stepped by their
    local shards and the norm is that of all shards.

    In a captured CUDA graph, step after at least one step outside. Replays read lr, weight_decay and momentum from
    device memory: after changing them, call `upload_hyperparameters()`, or give tensors and fill those. Gradients made
    inside the capture are served.

    Deterministic for a given number of threads. Raises ValueError or TypeError, before anything is written, for a
    teacher that does not match (it names the first tensor that differs), tensors that share memory, sparse gradients,
    complex parameters, a parameter list that was changed, and numbers out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        teacher: Teacher | None = None,
        momentum: float | Tensor = 0.996,
        *,
        copies: torch.dtype | None = None,
        max_norm: float | None = None,
        nonfinite: str = "propagate",
        implementation: str = "auto",
    ) -> None:
        check_hyperparameters(lr, betas, eps, weight_decay, momentum)
        check_clipping(max_norm, nonfinite)
        if copies not in (None, torch.bfloat16, torch.float16):
            raise TypeError(f"copies: expected torch.bfloat16, torch.float16 or None, got {copies}")
        self.max_norm, self.nonfinite, self.implementation = max_norm, nonfinite, implementation
        self._copy_dtype = copies
        self._students: list[Tensor] = []  # the parameters, group by group, then what teachers follow besides
        self._parameter_count = 0
        self._teachers: dict[Tensor, Tensor] = {}  # by student
        self._copies: dict[Tensor, Tensor] = {}  # by parameter and by teacher
        self._forget()
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            **_FOREIGN_DEFAULTS,
        }
        super().__init__(params, defaults)
        if teacher is not None:
            self._add_pairs(pair(teacher, self._students[: self._parameter_count]))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of any optimizer; "teacher" may be among the group's options."""
        param_group = dict(param_group)
        teacher = param_group.pop("teacher", None)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        known = self._students[: self._parameter_count]
        try:
            _check_group(group, len(known))
            pairs = [] if teacher is None else pair(teacher, group["params"])
            check_pairs(pairs, self._teachers, self._names())
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        others = [s for s in self._students[len(known) :] if not any(map(is_, repeat(s), group["params"]))]
        self._students = [*known, *group["params"], *others]
        self._parameter_count += len(group["params"])
        for parameter in group["params"]:
            self._add_copy(parameter)
        self._add_pairs(pairs)

    def _add_pairs(self, pairs: Pairs) -> None:
        check_pairs(pairs, self._teachers, self._names())
        for student, teacher in pairs:
            self._teachers[student] = teacher
            if not any(map(is_, repeat(student), self._students)):
                self._students.append(student)
            self._add_copy(teacher)
        self._forget()

    def _add_copy(self, tensor: Tensor) -> None:
        if self._copy_dtype is not None and tensor.is_floating_point() and tensor.dtype != self._copy_dtype:
            self._copies[tensor] = tensor.detach().to(self._copy_dtype)

    def _names(self) -> dict[Tensor, str]:
        return {
            parameter: name
            for group in self.param_groups
            for parameter, name in zip(group["params"], group.get("param_names", ()), strict=False)
        }

    def _forget(self) -> None:
        """What is laid out once; made again at the next step."""
        self._plan: plans.Plan | None = None
        self._addresses: list[Any] = []
        self._table: Tensor | None = None
        self._numbers: list[list[float]] = []
        self._report: Report | None = None

    def copy_of(self, tensor: Tensor) -> Tensor:
        """The low-precision copy of a parameter or teacher; the tensor itself if it has that dtype anyway.

        Always the same tensor: a forward pass may hold on to it. Raises KeyError for a tensor without copy.
        """
        if tensor in self._copies:
            return self._copies[tensor]
        if tensor.dtype == self._copy_dtype:
            return tensor
        raise KeyError(
            f"copy_of: expected a parameter or teacher of an optimizer with copies, got {tensor.shape}"
        )

    @torch.no_grad()
    def refresh_copies(self) -> None:
        """Write all copies anew, after parameters or teacher were changed by other means than a step."""
        for tensor, copy in self._copies.items():
            copy.copy_(tensor)

    @property
    def grad_norm(self) -> Tensor | None:
        """Norm of all gradients at the latest step, before clipping, float32 on their device; None if not asked for."""
        return None if self._report is None else self._report.norm[0]

    @property
    def skipped_steps(self) -> Tensor | None:
        """How many steps were skipped for a norm that is not finite, int64 on the parameters' device."""
        return None if self._report is None else self._report.skipped[0]

    @torch._disable_dynamo  # torch.compiler.disable would load the compiler with this module
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` returns, which forms the gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work, tensors = self._work()
        capturing = work.plan.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if capturing and self.nonfinite == "raise":
            raise RuntimeError("nonfinite: expected propagate or skip in a captured CUDA graph, got 'raise'")
        if capturing:
            copy_device_values_(work.hyperparameters, self._rows())
        else:
            self.upload_hyperparameters()
        run_(work, self.implementation)
        increment_versions(tensors)
        if self.nonfinite == "raise":
            raise_if_not_finite(work)
        return loss

    def explain(self) -> Explanation:
        """What the next step would choose, and why the others are refused."""
        work, _ = self._work()
        return OPERATION.explain(work.plan.device, work)

    @torch.no_grad()
    def upload_hyperparameters(self) -> None:
        """Bring the groups' numbers to where the kernels read them; a step does so by itself, a graph's replay not."""
        rows = self._rows()
        numbers = [[0.0 if isinstance(value, Tensor) else float(value) for value in row] for row in rows]
        if self._table is None or numbers != self._numbers:
            for lr, beta1, beta2, eps, weight_decay, momentum in rows:
                check_hyperparameters(lr, (beta1, beta2), eps, weight_decay, momentum)
            fresh = hyperparameter_table(rows, self._device())
            if self._table is None:
                self._table = fresh
            else:
                self._table.copy_(fresh)
            self._numbers = numbers
        else:
            copy_device_values_(self._table, rows)

    def _rows(self) -> list[tuple[Any, ...]]:
        return [
            (group["lr"], *group["betas"], group["eps"], group["weight_decay"], group["momentum"])
            for group in self.param_groups
        ]

    def _device(self) -> torch.device:
        return self._students[0].device if self._students else torch.device("cpu")

    def _work(self) -> tuple[Work, Tensors]:
        """The next step, checked, on this process's shards; and its tensors as the caller knows them."""
        tensors = self._gather()
        shards = tensors
        reduce = None
        if any(map(is_sharded, self._students)):
            shards = Tensors(*[[local(t) for t in part] for part in tensors])
            if self.max_norm is not None or self.nonfinite != "propagate":
                reduce = norm_reduction(tensors.parameters[: self._parameter_count])
        plan = self._find_plan(shards)
        if self._table is None:
            self.upload_hyperparameters()
        if self._report is None and (self.max_norm is not None or self.nonfinite != "propagate"):
            self._report = new_report(plan.device)
        assert self._table is not None
        work = prepare(shards, plan, self._table, self.max_norm, self.nonfinite, self._report, reduce)
        return work, tensors

    def _gather(self) -> Tensors:
        students, count = self._students, self._parameter_count
        groups = [i for i, group in enumerate(self.param_groups) for _ in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if len(parameters) != count or not all(map(is_, parameters, students)):
            raise ValueError(
                f"params: expected the {count} parameters that the optimizer was given, got {len(parameters)} "
                "in another list; add_param_group adds more"
            )
        others: list[Any] = [None] * (len(students) - count)
        gradients = [parameter.grad for parameter in parameters]
        states = [self.state.get(parameter) for parameter in parameters]
        new = [i for i in range(count) if gradients[i] is not None and not states[i]]
        for i in new:
            check_gradient(i, parameters[i], gradients[i])
        for i in new:
            states[i] = self.state[parameters[i]] = _new_state(parameters[i])
        empty: dict[str, Tensor] = {}
        exp_avgs, exp_avg_sqs, steps = (
            [(state or empty).get(name) for state in states] + others
            for name in ("exp_avg", "exp_avg_sq", "step")
        )
        teachers = [self._teachers.get(student) for student in students]
        return Tensors(
            parameters=students,
            exp_avgs=exp_avgs,
            exp_avg_sqs=exp_avg_sqs,
            steps=steps,
            teachers=teachers,
            copies=[self._copies.get(parameter) for parameter in parameters] + others,
            teacher_copies=[None if teacher is None else self._copies.get(teacher) for teacher in teachers],
            gradients=gradients + others,
            groups=groups + [0] * len(others),
        )

    def _find_plan(self, tensors: Tensors) -> plans.Plan:
        addresses: list[Any] = [parameter.shape for parameter in tensors.parameters]
        for _, part in tensors.lasting():
            addresses += [None if tensor is None else tensor.data_ptr() for tensor in part]
        if self._plan is None or addresses != self._addresses:
            self._plan = plans.find(
                tensors, tensors.parameters[0].device if tensors.parameters else self._device()
            )
            self._addresses = addresses
        return self._plan

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load this class's or torch.optim.AdamW's state. Raises ValueError for amsgrad, maximize or coupled decay."""
        groups = state_dict["param_groups"]
        for i, group in enumerate(groups):
            for name in ("amsgrad", "maximize", "differentiable", "decoupled_weight_decay"):
                wanted = _FOREIGN_DEFAULTS[name]
                if group.get(name, wanted) != wanted:
                    raise ValueError(f"param_groups[{i}]: expected {name}={wanted}, got {group[name]}")
        # A number of groups that does not fit is refused by the call below.
        own = [group["momentum"] for group in self.param_groups] + [self.defaults["momentum"]] * len(groups)
        completed = [
            {**group, "momentum": group.get("momentum", mine)}
            for mine, group in zip(own, groups, strict=False)
        ]
        super().load_state_dict({**state_dict, "param_groups": completed})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in _OWN}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        for group in self.param_groups:
            for name, value in _FOREIGN_DEFAULTS.items():
                group.setdefault(name, value)
            for parameter in group["params"]:
                held = self.state.get(parameter)
                if held:
                    step = torch.as_tensor(held["step"], dtype=torch.float32)
                    held["step"] = step.to(parameter.device)


_OWN = (
    "max_norm",
    "nonfinite",
    "implementation",
    "_copy_dtype",
    "_students",
    "_parameter_count",
    "_teachers",
    "_copies",
)


def _new_state(parameter: Tensor) -> dict[str, Tensor]:
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


def _check_group(group: dict[str, Any], start: int) -> None:
    check_hyperparameters(group["lr"], group["betas"], group["eps"], group["weight_decay"], group["momentum"])
    for i, parameter in enumerate(group["params"], start):
        if not parameter.is_floating_point():
            raise TypeError(f"params[{i}]: expected a real floating-point dtype, got {parameter.dtype}")
    for name in ("amsgrad", "maximize", "differentiable"):
        if group[name]:
            raise ValueError(f"{name}: expected False, got {group[name]}")
