"""Compiles a kernel configuration to machine code for an architecture, without a GPU or a driver."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..configuration import KernelConfiguration
from . import sass
from .hardware import ARCHITECTURES, occupancy
from .keys import compilation_key
from .loops import largest_loop
from .roofline import Turn, turn

WIDE_BITS = 128
"""The widest access that every architecture has (sm_100 can move 256 bits)."""


@dataclass(frozen=True)
class CodegenRecord:
    """What the machine code of one configuration on one architecture shows.

    op, name, arch: the room, `KernelConfiguration.name` and the compute capability (90 = 9.0).
    key: `compilation_key`: another record with the same key has the same figures.
    registers: 32-bit registers per thread.
    stack_bytes, local_loads, local_stores: any of them is a spill; `registers` alone says nothing about it.
    shared_bytes: dynamic shared memory per block.
    occupancy: resident warps over the SM's limit, in [0, 1].
    instructions, main_loop_instructions: static counts of the kernel and of its largest loop (0: no loop).
    special_functions: MUFU (reciprocal, root, exponential, ...).
    asynchronous_copies: instructions that copy between global and shared memory without a register.
    tensor_core: count by instruction.
    loads, stores: global accesses by their width in bits per thread.
    turn: the static roofline's.
    """

    op: str
    name: str
    arch: int
    key: str
    registers: int
    stack_bytes: int
    local_loads: int
    local_stores: int
    shared_bytes: int
    occupancy: float
    instructions: int
    main_loop_instructions: int
    special_functions: int
    asynchronous_copies: int
    tensor_core: dict[str, int]
    loads: dict[int, int]
    stores: dict[int, int]
    turn: Turn

    @property
    def label(self) -> str:
        """How messages name the record."""
        return f"{self.op}/{self.name} sm_{self.arch}"

    @property
    def wide_loads(self) -> int:
        """Global loads of at least 128 bits per thread."""
        return sum(count for bits, count in self.loads.items() if bits >= WIDE_BITS)

    @property
    def wide_stores(self) -> int:
        """Global stores of at least 128 bits per thread."""
        return sum(count for bits, count in self.stores.items() if bits >= WIDE_BITS)


class Cubin(NamedTuple):
    """A compiled kernel; shared_bytes: dynamic shared memory, which is all that Triton uses."""

    code: bytes
    shared_bytes: int


def compile_configuration(configuration: KernelConfiguration, arch: int, op: str = "") -> CodegenRecord:
    """The record of `configuration` on `arch`, a key of `ARCHITECTURES`; `op` only names the room in it.

    Raises ValueError for an unknown architecture or a configuration that does not describe its kernel's
    arguments, RuntimeError where kernels are interpreted, and Triton's own errors where one does not compile.
    """
    cubin = compile_cubin(configuration, arch)
    (code,) = sass.disassemble([cubin.code], arch)
    return describe(configuration, arch, op, cubin, code)


def compile_cubin(configuration: KernelConfiguration, arch: int) -> Cubin:
    """The first half of `compile_configuration`, with the same errors."""
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch: expected one of {', '.join(map(str, ARCHITECTURES))}, got {arch}")

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = configuration.kernel
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError(
            f"{configuration.name}: expected a triton.JITFunction, got {type(kernel).__name__}; "
            "TRITON_INTERPRET=1 makes interpreted kernels, which cannot be compiled"
        )
    _check_arguments(configuration)
    source = ASTSource(
        fn=kernel,
        signature={name: configuration.signature.get(name, "constexpr") for name in kernel.arg_names},
        constexprs=dict(configuration.constexprs),
        attrs={
            (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
            for name in configuration.divisible_by_16
        },
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=configuration.options)
    return Cubin(compiled.asm["cubin"], compiled.metadata.shared)


def describe(
    configuration: KernelConfiguration, arch: int, op: str, cubin: Cubin, code: sass.MachineCode
) -> CodegenRecord:
    """The second half of `compile_configuration`; `code` is what `sass.disassemble` found in `cubin`."""
    resident = occupancy(arch, code.registers, cubin.shared_bytes, configuration.num_warps)
    return CodegenRecord(
        op=op,
        name=configuration.name,
        arch=arch,
        key=compilation_key(configuration, arch),
        registers=code.registers,
        stack_bytes=code.stack_bytes,
        local_loads=code.count({"LDL"}).total(),
        local_stores=code.count({"STL"}).total(),
        shared_bytes=cubin.shared_bytes,
        occupancy=round(resident, 4),
        instructions=len(code.instructions),
        main_loop_instructions=largest_loop(code.instructions),
        special_functions=code.count({"MUFU"}).total(),
        asynchronous_copies=code.count(sass.ASYNCHRONOUS_COPIES).total(),
        tensor_core=dict(sorted(code.count(sass.TENSOR_CORE).items())),
        loads=dict(sorted(code.widths(sass.GLOBAL_LOADS).items())),
        stores=dict(sorted(code.widths(sass.GLOBAL_STORES).items())),
        turn=turn(code.instructions, arch, configuration.num_warps),
    )


def _check_arguments(configuration: KernelConfiguration) -> None:
    """Every argument is described once, and no alignment is claimed that a launch would not specialise on."""
    parameters: dict[str, Any] = {p.name: p for p in configuration.kernel.params}
    described = [*configuration.signature, *configuration.constexprs]
    if sorted(described) != sorted(parameters):
        raise ValueError(
            f"{configuration.name}: signature and constexprs: expected every argument of the kernel once "
            f"({', '.join(parameters)}), got {', '.join(described)}"
        )
    for name in configuration.divisible_by_16:
        if name not in configuration.signature:
            raise ValueError(f"{configuration.name}: divisible_by_16: {name} is not in the signature")
        if parameters[name].do_not_specialize or parameters[name].do_not_specialize_on_alignment:
            raise ValueError(
                f"{configuration.name}: divisible_by_16: the kernel does not specialise on {name}"
            )
