"""The reader of machine code and the arithmetic on what it finds, on listings written by hand."""

from collections.abc import Callable, Sequence

import pytest

from jepa_fast.kernels.runtime.codegen.hardware import occupancy
from jepa_fast.kernels.runtime.codegen.loops import largest_loop, main_loop
from jepa_fast.kernels.runtime.codegen.roofline import turn
from jepa_fast.kernels.runtime.codegen.sass import GLOBAL_LOADS, TENSOR_CORE, Instruction, MachineCode, parse


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
    assert largest_loop(code.instructions) == 2


def test_largest_loop_holds_its_inner_loop() -> None:
    code = machine_code(
        "MOV R1, RZ",
        "IADD3 R1, R1, 0x1, RZ",  # 0x10: outer head
        "FADD R2, R2, R3",  # 0x20: inner head
        "@P1 BRA 0x20",
        "BRA.U UP0, 0x10",
        "EXIT",
    )
    assert largest_loop(code.instructions) == 4


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
    assert largest_loop(code.instructions) == 2


def test_a_loop_may_begin_at_padding() -> None:
    code = machine_code("MOV R1, RZ", "NOP", "FADD R2, R2, R3", "@P0 BRA 0x10", "EXIT")
    assert largest_loop(code.instructions) == 2


def test_the_main_loop_is_the_one_with_the_most_work_of_its_own() -> None:
    code = machine_code(
        "MOV R1, RZ",
        "IADD3 R1, R1, 0x1, RZ",  # 0x10: outer head
        "FADD R2, R2, R3",  # 0x20: inner head
        "FADD R2, R2, R4",
        "SYNCS.PHASECHK P0, [R1]",  # 0x40: a wait inside
        "@!P0 BRA 0x40",
        "@P1 BRA 0x20",
        "@P2 BRA 0x10",
        "EXIT",
    ).instructions

    def count(base: str) -> Callable[[Sequence[Instruction]], int]:
        return lambda loop: sum(i.base == base for i in loop)

    assert [i.address for i in main_loop(code, count("FADD"))] == [0x20, 0x30, 0x60]
    assert [i.address for i in main_loop(code, count("IADD3"))] == [0x10, 0x70]


def test_no_main_loop_without_a_loop() -> None:
    behind = machine_code("@!P0 BRA 0x30", "STG.E [R4], R2", "EXIT", "MOV R2, RZ", "BRA 0x10")
    assert main_loop(behind.instructions, len) == []


@pytest.mark.parametrize(
    ("arch", "lines", "operations"),
    [
        (80, ["HMMA.16816.F32.BF16 R4, R8, R12, R4"], 2 * 16 * 8 * 16 * 8),
        (80, ["HMMA.1688.F32.TF32 R4, R8, R12, R4"], 2 * 16 * 8 * 8 * 8),
        (90, ["HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0"], 2 * 64 * 128 * 16 * 2),
        # 0x8100490: float32 += bfloat16 * bfloat16, N = 64, M = 128; 0x4100910: TF32, M = 64
        (
            100,
            [
                "UMOV UR35, 0x8100490",
                "UTCHMMA gdesc[UR6], gdesc[UR14], tmem[UR2], tmem[UR34], idesc[UR35], !UPT",
            ],
            2 * 128 * 64 * 16,
        ),
        (
            100,
            [
                "UMOV UR19, 0x4100910",
                "UTCHMMA tmem[UR4], gdesc[UR6], tmem[UR9], tmem[UR18], idesc[UR19], UPT",
            ],
            2 * 64 * 64 * 8,
        ),
    ],
)
def test_operations_of_tensor_core_instructions(arch: int, lines: list[str], operations: int) -> None:
    found = turn(machine_code(*lines, "EXIT").instructions, arch, num_warps=8)
    assert found.tensor_operations == operations
    assert not found.loop


def test_an_unknown_tensor_core_instruction_is_no_zero() -> None:
    with pytest.raises(ValueError, match=r"HMMA.9999.F32: a tensor-core instruction of unknown size"):
        turn(machine_code("HMMA.9999.F32 R4, R8, R12, R4", "EXIT").instructions, 80, num_warps=4)
    with pytest.raises(ValueError, match="its tile is no constant"):
        turn(
            machine_code("UTCHMMA gdesc[UR6], tmem[UR2], idesc[UR35]", "EXIT").instructions, 100, num_warps=4
        )


def test_bytes_clocks_and_bound() -> None:
    lines = [
        "LDG.E.128 R8, desc[UR4][R2.64]",  # every lane
        "LDG.E R12, desc[UR4][UR6.64]",  # one address for the warp
        "MUFU.EX2 R9, R8",
        "STG.E.64 desc[UR4][R6.64+0x10], R8",
        "@P0 BRA 0x0",
        "EXIT",
    ]
    found = turn(machine_code(*lines).instructions, 90, num_warps=4)
    assert (found.loop, found.instructions) == (True, 5)
    assert (found.loaded_bytes, found.stored_bytes) == (4 * (32 * 16 + 4), 4 * 32 * 8)
    assert found.special_functions == 4 * 32
    # 4.8 TB/s over 132 SMs at 1.83 GHz are 19.87 bytes a clock; 20 warp instructions, four at a time; 16 MUFU a clock.
    assert found.clocks == {"memory": 155, "tensor": 0, "issue": 5, "special": 8}
    assert found.bound == "memory"
    assert turn(machine_code(*lines).instructions, 120, num_warps=4).clocks == {}


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
