"""The peers that a row can stand against, by the name that `jepa-fast bench --against` takes.

A suite names its baselines in its own words ("I-JEPA eager", "SDPA, padded"); the name of the peer follows from them by
the patterns below, so a suite declares nothing. What no pattern knows is `eager`: a published formulation.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jepa_fast.bench.measure.compare import Call


@dataclass(frozen=True)
class Peer:
    """what: one line for the reader. pattern: of the baselines' names. module: what has to be installed, and how."""

    name: str
    what: str
    pattern: str
    module: str = ""
    command: str = ""
    needs_cuda: bool = False

    def why_not(self, device: torch.device) -> str:
        """Why this peer cannot run on that device, with the command that would add it; "" if it can."""
        reasons = []
        if self.module and not installed(self.module):
            how = f"; `{self.command}` adds it" if self.command else ""
            reasons.append(f"{self.module} is not installed{how}")
        if self.needs_cuda and device.type != "cuda":
            reasons.append("it needs a CUDA device")
        if reasons:
            return "; ".join(reasons)
        if self.name == "compile":
            return _why_no_compiler(device)
        return ""


# The first pattern that is found in a baseline's name counts.
PEERS = (
    Peer("compile", "torch.compile of the published formulation", r"torch\.compile|compiled"),
    Peer("sdpa", "scaled_dot_product_attention, the backend that PyTorch picks", r"^SDPA(,|$)"),
    Peer("sdpa-flash", "scaled_dot_product_attention, flash", r"^SDPA flash"),
    Peer("sdpa-efficient", "scaled_dot_product_attention, memory-efficient", r"^SDPA efficient"),
    Peer("sdpa-cudnn", "scaled_dot_product_attention, cuDNN", r"^SDPA cudnn", needs_cuda=True),
    Peer("sdpa-math", "scaled_dot_product_attention, plain", r"^SDPA math"),
    Peer("flex", "FlexAttention, compiled", r"FlexAttention"),
    Peer(
        "torch-varlen",
        "torch.nn.attention.varlen",
        r"^torch varlen",
        "torch.nn.attention.varlen",
        needs_cuda=True,
    ),
    Peer(
        "flash-attn",
        "flash-attn, packed where sequences differ",
        r"^flash-attn",
        "flash_attn",
        "pip install flash-attn --no-build-isolation",
        needs_cuda=True,
    ),
    Peer(
        "xformers",
        "memory_efficient_attention",
        r"^xformers",
        "xformers",
        "pip install xformers",
        needs_cuda=True,
    ),
    Peer("foreach", "_foreach_lerp_ over the whole list", r"_foreach_"),
    Peer("fused-adamw", "fused AdamW, then foreach ops for the teacher", r"^fused AdamW"),
    Peer("indexing", "advanced indexing and views", r"^advanced indexing"),
    Peer("copy", "a plain copy of as many bytes", r"^copy of"),
    Peer("raw-launch", "the kernel on prepared arguments", r"^raw launch"),
    Peer("ablation", "our own step without its newest fused piece", r"^without "),
    Peer("cold", "the same without its start-up", r"^warm$|^import torch"),
    Peer("eager", "the published formulation in eager PyTorch", r""),
)
BY_NAME = {peer.name: peer for peer in PEERS}
# A name for several.
GROUPS = {"sdpa": ("sdpa", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math")}
NAMES = tuple(BY_NAME)


def peer_of(baseline: str) -> str:
    """The name of the peer that a baseline of a suite is."""
    return next(peer.name for peer in PEERS if re.search(peer.pattern, baseline))


def expanded(names: Sequence[str]) -> tuple[str, ...]:
    """With the members of every group named."""
    return tuple(dict.fromkeys(member for name in names for member in GROUPS.get(name, (name,))))


def choose(
    baselines: Mapping[str, Call],
    on_request: Mapping[str, Call],
    against: Sequence[str],
    device: torch.device,
) -> dict[str, Call]:
    """The baselines of a case to run: its own ones, or, if peers are named, theirs out of all that it can offer.

    `compile` is offered by every case: where a suite has none of its own, its first published formulation is compiled.
    """
    if not against:
        return dict(baselines)
    offered = {**baselines, **on_request}
    if "compile" in against and not any(peer_of(label) == "compile" for label in offered):
        published = (call for label, call in baselines.items() if peer_of(label) == "eager")
        eager = next(published, next(iter(baselines.values()), None))
        if eager is not None and not BY_NAME["compile"].why_not(device):
            offered["torch.compile"] = compiled(eager)
    return {label: call for label, call in offered.items() if peer_of(label) in against}


def compiled(call: Call) -> Call:
    """The same through torch.compile, which leaves out what it cannot take (gradients, optimizers) by itself."""

    def run(*arguments: Any) -> object:
        return call(*arguments)

    return torch.compile(run)


def missing(against: Sequence[str], offered: set[str], device: torch.device) -> list[str]:
    """One line for each peer that cannot run here, or that no case offers.

    offered: the peers that the chosen cases have. Without names, the peers that would be there if they were installed.
    """
    lines = []
    for name in against or [peer.name for peer in PEERS if peer.module]:
        reason = BY_NAME[name].why_not(device)
        if reason:
            lines.append(f"{name}: {reason}")
        elif against and name not in offered:
            lines.append(f"{name}: no case of the chosen suites has it")
    return lines


def installed(module: str) -> bool:
    """Whether it could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package that does not load
        return False


def _why_no_compiler(device: torch.device) -> str:
    """Inductor needs Triton on a GPU and a C++ compiler on a CPU."""
    if device.type == "cuda":
        return "" if installed("triton") else "triton is not installed; `pip install triton` adds it"
    try:
        from torch._inductor import cpp_builder

        cpp_builder.get_cpp_compiler()
    except Exception:  # Inductor's errors have no public base
        return "torch.compile finds no C++ compiler; `apt-get install g++` or its like adds one"
    return ""
