"""The reader of machine code and the arithmetic on what it finds, on listings written by hand."""

import pytest

from jepa_fast.kernels.runtime.codegen.hardware import occupancy
from jepa_fast.kernels.runtime.codegen.sass import GLOBAL_LOADS, TENSOR_CORE, MachineCode, parse


def machine_code(*lines: str) -> MachineCode:
    """Sixteen bytes an instruction, as the hardware has it."""
    listing = "\n".join(f"        /*{16 * i:04x}*/   {line} ;" for i, line in enumerate(lines))
    return MachineCode(registers=32, stack_bytes=0, instructions=tuple(parse(listing)))


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("LDG.E", 32),
        ("LDG.E.U8", 8),
        ("LDG.E.S16", 16),
        ("LDG.E.64.CONSTANT", 64),
        ("LDG.E.128", 128),
        ("LDG.E.LTC128B", 32),  # a cache hint, no width
        ("LDGSTS.E.BYPASS.LTC128B.128", 128),
        ("LDG.E.ENL2.256", 256),
    ],
)
def test_access_widths(opcode: str, bits: int) -> None:
    code = machine_code(f"@!P0 {opcode} R8, desc[UR4][R2.64]", "EXIT")
    assert code.widths(GLOBAL_LOADS) == {bits: 1}


def test_tensor_core_instructions_are_told_from_look_alikes() -> None:
    code = machine_code("HFMA2.MMA R9, -RZ, RZ, 0, 0", "HMMA.16816.F32.BF16 R4, R8, R12, R4", "EXIT")
    assert code.count(TENSOR_CORE) == {"HMMA": 1}


def test_padding_is_no_instruction() -> None:
    assert len(machine_code("MOV R1, R2", "EXIT", "BRA 0x20", "NOP", "NOP").instructions) == 2


def test_scheduling_notes_are_no_operands() -> None:
    code = machine_code("MOV R1, RZ &req={0,1} ?trans4", "FADD R2, R2, R3", "BRA 0x10 &rd=0x0 &req={1,2}")
    assert [i.target for i in code.instructions] == [None, None, 0x10]
    assert not any(i.conditional for i in code.instructions)
    assert code.main_loop_instructions == 2


def test_largest_loop_holds_its_inner_loop() -> None:
    code = machine_code(
        "MOV R1, RZ",
        "IADD3 R1, R1, 0x1, RZ",  # 0x10: outer head
        "FADD R2, R2, R3",  # 0x20: inner head
        "@P1 BRA 0x20",
        "BRA.U UP0, 0x10",
        "EXIT",
    )
    assert code.main_loop_instructions == 4


def test_rarely_taken_code_behind_the_kernel_is_no_loop() -> None:
    code = machine_code(
        "SYNCS.PHASECHK P0, [R1]",
        "@!P0 BRA 0x50",
        "FADD R2, R2, R3",  # 0x20: straight on
        "STG.E [R4], R2",
        "EXIT",
        "SYNCS.PHASECHK P0, [R1]",  # 0x50: waits, then goes back to 0x20
        "@!P0 BRA 0x50",
        "BRA 0x20",
    )
    assert code.main_loop_instructions == 2


def test_a_loop_may_begin_at_padding() -> None:
    code = machine_code("MOV R1, RZ", "NOP", "FADD R2, R2, R3", "@P0 BRA 0x10", "EXIT")
    assert code.main_loop_instructions == 2


@pytest.mark.parametrize(
    ("arch", "registers", "shared_bytes", "num_warps", "expected"),
    [
        (80, 32, 0, 4, 1.0),
        (80, 128, 0, 4, 16 / 64),  # 128 registers: 4 warps in each of the 4 partitions
        (80, 129, 0, 4, 12 / 64),  # taken as 136, one warp fewer in each
        (90, 32, 100 * 1024, 4, 8 / 64),  # two blocks of 101 KiB in 228
        (90, 32, 0, 1, 32 / 64),  # 32 blocks of one warp
        (120, 40, 0, 4, 1.0),  # 48 warps
        (120, 255, 48 * 1024, 8, 8 / 48),
    ],
)
def test_occupancy(arch: int, registers: int, shared_bytes: int, num_warps: int, expected: float) -> None:
    assert occupancy(arch, registers, shared_bytes, num_warps) == pytest.approx(expected)
