"""One compiled form of a Triton kernel, described once for the launcher and for the code-generation gate."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class KernelConfiguration:
    """What Triton compiles when the launcher picks this configuration, and what its machine code must show.

    A kernel module (`triton_*.py` in an op's room) lists every configuration that its launcher can pick in
    `configurations() -> Iterable[KernelConfiguration]`. The launcher passes `constexprs` and `options` on,
    the gate compiles the same for every architecture: what is checked is what is launched.

    This file needs neither Triton nor a GPU.
    """

    name: str
    """Unique within its room, such as `forward/bfloat16<-float32/BLOCK_D=512`; what comes before the first
    `/` is the kernel's family, one row in the command's table."""
    kernel: Any
    """The `triton.JITFunction`."""
    signature: Mapping[str, str]
    """Triton type of every run-time argument: `*fp32`, `*bf16`, `*i64`, `i32`, `i64`, `fp32`, ..."""
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    """Value of every compile-time argument; a pointer that the launcher passes as None belongs here, too."""
    divisible_by_16: tuple[str, ...] = ()
    """Arguments that the launcher guarantees to be multiples of 16: addresses of pointers, values of
    integers. Triton specialises a launch on this, and 128-bit accesses depend on it."""
    num_warps: int = 4
    num_stages: int = 1
    """Software-pipelining depth of loops round `tl.dot`; 1 turns it off."""
    max_registers: int | None = None
    """Registers per thread that the assembler may use. None lets it choose, and it may then prefer a few spills to
    blocks on an SM that it takes to be worth more."""
    enable_fp_fusion: bool = True
    """Contract a product and a sum to one FMA. Explicit, as Triton's default changes with its version."""

    architectures: tuple[int, ...] | None = None
    """Compute capabilities (90 = 9.0) of the gate's that the launcher picks this for; None: all of them."""

    sampled: bool = True
    """Whether the gate compiles it by itself. False: only with `--every`, as it differs from a sampled one by a size or
    an element type alone, which the launcher's table was checked for once."""

    expected_load_bits: int = 128
    """Width that the widest global load must reach; 0 makes no claim."""
    expected_store_bits: int = 128
    """Width that the widest global store must reach; 0 makes no claim, as where one scalar is stored."""
    expected_tensor_core: bool = False
    """Whether matrix products must run on tensor cores."""

    @property
    def family(self) -> str:
        """The kernel's short name: the configuration's name up to its first `/`."""
        return self.name.partition("/")[0]

    @property
    def options(self) -> dict[str, Any]:
        """Compile options, as keyword arguments of a launch and as options of `triton.compile` alike."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.enable_fp_fusion,
            "maxnreg": self.max_registers,
        }
