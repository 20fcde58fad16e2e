"""Reads a cubin's machine code (SASS): its resources and its instructions."""

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
# `/*0210*/   @!P0 LDG.E.128 R8, desc[UR4][R2.64] ;`; some versions note the scheduling before the semicolon,
# `&req={0,1} ?trans4`.
_INSTRUCTION = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P[0-9T]+\s+)?([A-Z][A-Za-z0-9_.]*)([^;&?]*)[^;]*;", re.MULTILINE
)
_TARGET = re.compile(r"(0x[0-9a-f]+)\s*$")

TENSOR_CORE = {
    "HMMA", "IMMA", "DMMA", "QMMA", "OMMA",  # warp level: sm_80 and sm_120
    "HGMMA", "IGMMA", "QGMMA",  # warp-group level: sm_90
    "UTCHMMA", "UTCIMMA", "UTCQMMA", "UTCOMMA",  # tensor memory: sm_100
}  # fmt: skip
GLOBAL_LOADS = {"LDG", "LD", "LDGSTS"}  # LDGSTS copies from global to shared memory asynchronously
GLOBAL_STORES = {"STG", "ST"}
ASYNCHRONOUS_COPIES = {"LDGSTS", "UTMALDG", "UTMASTG", "UBLKCP"}
_WIDTH_BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
_PLAIN_WIDTH_BITS = 32


@dataclass(frozen=True)
class Instruction:
    """One machine instruction. target: the address it may jump to, None if it does not branch."""

    address: int
    opcode: str
    conditional: bool
    target: int | None
    operands: str = ""

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def width_bits(self) -> int:
        """Bits that each thread moves, for a load or a store."""
        return next((_WIDTH_BITS[p] for p in self.opcode.split(".") if p in _WIDTH_BITS), _PLAIN_WIDTH_BITS)


@dataclass(frozen=True)
class MachineCode:
    """A kernel: registers per thread, bytes of stack per thread and its instructions in address order."""

    registers: int
    stack_bytes: int
    instructions: tuple[Instruction, ...]

    def count(self, bases: set[str]) -> Counter[str]:
        """How often each opcode whose first component is in `bases` occurs."""
        return Counter(i.base for i in self.instructions if i.base in bases)

    def widths(self, bases: set[str]) -> Counter[int]:
        """How many instructions of `bases` move 8, 16, 32, 64, 128 or 256 bits per thread."""
        return Counter(i.width_bits for i in self.instructions if i.base in bases)


def disassemble(cubins: Sequence[bytes], arch: int) -> list[MachineCode]:
    """The machine code of each cubin of one architecture, by the tools that come with Triton.

    All go through the disassembler together: its start takes longer than a kernel's compilation.
    """
    from triton import knobs

    texts = [_text_sections(cubin) for cubin in cubins]
    target = f"SM{arch}{'a' if arch >= 90 else ''}"  # as Triton names it to ptxas
    listing = run(knobs.nvidia.nvdisasm.path, "--binary", target, data=b"".join(texts))
    instructions = parse(listing)
    codes = []
    start = 0
    for cubin, text in zip(cubins, texts, strict=True):
        end = start + len(text)
        registers, stack_bytes = _resources(cubin)
        own = tuple(instruction for instruction in instructions if start <= instruction.address < end)
        codes.append(MachineCode(registers, stack_bytes, own))
        start = end
    return codes


def parse(listing: str) -> list[Instruction]:
    """The instructions of an `nvdisasm` listing, padding left out."""
    instructions = []
    for match in _INSTRUCTION.finditer(listing):
        address, guard, opcode, operands = match.groups()
        target = _TARGET.search(operands) if opcode.startswith(("BRA", "JMP")) else None
        instruction = Instruction(
            address=int(address, 16),
            opcode=opcode,
            # `BRA.U !UP0, 0x160` carries its condition among the operands.
            conditional=guard is not None or (target is not None and "," in operands),
            target=int(target[1], 16) if target else None,
            operands=operands.strip(),
        )
        # A branch to itself, then NOPs, fill a section up.
        if opcode != "NOP" and instruction.target != instruction.address:
            instructions.append(instruction)
    return instructions


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack per thread."""
    from triton import knobs

    usage = run(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", data=cubin)
    found = _RESOURCES.search(usage)
    if found is None:
        raise RuntimeError(f"cuobjdump names no resources: {' '.join(usage.split())}")
    return int(found[1]), int(found[2])


def _text_sections(cubin: bytes) -> bytes:
    """The code of a cubin, an ELF file of 64 bits: its sections `.text.*`, one after the other."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", cubin, 0x3A)
    # Name, kind, flags, address, offset and size of each section.
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * entry_size) for i in range(count)]
    names_offset = sections[names_index][4]
    return b"".join(
        cubin[offset : offset + size]
        for name, _, _, _, offset, size in sections
        if cubin.startswith(b".text.", names_offset + name)
    )


def run(tool: str, *options: str, data: bytes) -> str:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        finished = subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=False)
    if finished.returncode:
        message = " ".join((finished.stderr or finished.stdout).split())
        raise RuntimeError(f"{Path(tool).name} failed: {message}")
    return finished.stdout
