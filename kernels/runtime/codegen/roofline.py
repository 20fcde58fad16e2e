"""A static roofline: what a block does in one turn of its main loop, and which unit of the SM bounds it.

README.md has the arithmetic and the source of every number.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import sass
from .hardware import ISSUED_PER_CLOCK, THROUGHPUT
from .loops import main_loop
from .sass import Instruction

_LANES = 32
_GROUP = 4  # warps to one HGMMA
_TILE = re.compile(r"\.(\d+)x(\d+)x(\d+)(?:\.|$)")
_WARP_TILE = {
    "16816": 16 * 8 * 16,
    "16832": 16 * 8 * 32,
    "1688": 16 * 8 * 8,
    "1684": 16 * 8 * 4,
    "884": 8 * 8 * 4,
}
_DESCRIPTOR = re.compile(r"idesc\[(UR\d+)\]")
_CONSTANT = re.compile(r"^(UR\d+), (0x[0-9a-f]+)$")
_MEMORY_DESCRIPTOR = re.compile(r"desc\[UR\d+\]")
_ARITHMETIC = ("F", "HADD", "HMUL", "HFMA", "DADD", "DMUL", "DFMA", "MUFU")
_TF32_FORMAT = 2
# Time of a multiply-add, with half precision's as unit.
_EIGHT_BITS, _TF32, _DOUBLE = 0.5, 2.0, 16.0


@dataclass(frozen=True)
class Turn:
    """What one block does in one turn of its main loop, or in its whole life where it has no loop.

    loop: whether there is a loop.
    instructions: of each warp.
    loaded_bytes, stored_bytes: through global accesses and asynchronous copies, every lane's counted.
    tensor_operations: floating-point operations of the tensor cores, two to a multiply-add.
    special_functions: values that go through the special-function unit.
    clocks: of an SM, for each unit to do that alone: memory, tensor, issue, special; empty where no rates are known.
    bound: the unit that takes longest; empty likewise.
    """

    loop: bool
    instructions: int
    loaded_bytes: int
    stored_bytes: int
    tensor_operations: int
    special_functions: int
    clocks: dict[str, int]
    bound: str


def turn(instructions: Sequence[Instruction], arch: int, num_warps: int) -> Turn:
    """The main loop of a kernel whose blocks have `num_warps` warps.

    Raises ValueError for a tensor-core instruction of unknown size.
    """
    products = {i.address: _products(i, tile, num_warps) for i, tile in _with_tiles(instructions)}

    def work(code: Sequence[Instruction]) -> tuple[int, ...]:
        multiplied = sum(products[i.address][0] for i in code if i.address in products)
        calculated = sum(i.base.startswith(_ARITHMETIC) for i in code)
        moved = sum(_bytes(i, num_warps) for i in code)
        # The same work in fewer instructions: the loop over whole tiles, not the one over what is left.
        return multiplied, calculated, moved, -len(code)

    loop = main_loop(instructions, work)
    code = loop or instructions
    loaded = sum(_bytes(i, num_warps) for i in code if i.base in sass.GLOBAL_LOADS)
    stored = sum(_bytes(i, num_warps) for i in code if i.base in sass.GLOBAL_STORES)
    own = [products[i.address] for i in code if i.address in products]
    operations = 2 * sum(count for count, _ in own)
    special = _LANES * num_warps * sum(i.base == "MUFU" for i in code)
    clocks: dict[str, int] = {}
    if arch in THROUGHPUT:
        rates = THROUGHPUT[arch]
        # Tiles of a product are read by many blocks: they come from the cache, through the SM's port.
        memory = rates.cache_bytes if operations else rates.memory_bytes
        slowed = 2 * sum(count * slowness for count, slowness in own)
        clocks = {
            "memory": round((loaded + stored) / memory),
            "tensor": round(slowed / rates.tensor_operations),
            "issue": round(len(code) * num_warps / ISSUED_PER_CLOCK),
            "special": round(special / rates.special_functions),
        }
    bound = max(clocks, key=clocks.__getitem__) if clocks else ""
    return Turn(bool(loop), len(code), loaded, stored, operations, special, clocks, bound)


def _bytes(instruction: Instruction, num_warps: int) -> int:
    """What the instruction moves between global memory and a block."""
    if instruction.base not in sass.GLOBAL_LOADS | sass.GLOBAL_STORES:
        return 0
    lanes = 1 if "[UR" in _MEMORY_DESCRIPTOR.sub("", _address(instruction)) else _LANES
    return instruction.width_bits // 8 * lanes * num_warps


def _address(instruction: Instruction) -> str:
    """The operand in global memory: the last in brackets, but for a store the first."""
    operands = [part for part in instruction.operands.split(", ") if "[" in part]
    if not operands:
        return ""
    return operands[0] if instruction.base in sass.GLOBAL_STORES else operands[-1]


def _with_tiles(instructions: Sequence[Instruction]) -> list[tuple[Instruction, int | None]]:
    """The tensor-core instructions; with those of sm_100 the constant that describes their tile."""
    constants: dict[str, int] = {}
    found: list[tuple[Instruction, int | None]] = []
    for instruction in instructions:
        if instruction.base == "UMOV" and (moved := _CONSTANT.match(instruction.operands)):
            constants[moved[1]] = int(moved[2], 16)
        elif instruction.base in sass.TENSOR_CORE:
            register = _DESCRIPTOR.search(instruction.operands)
            found.append((instruction, constants.get(register[1]) if register else None))
    return found


def _products(instruction: Instruction, tile: int | None, num_warps: int) -> tuple[int, float]:
    """Multiply-adds of one tensor-core instruction, for the whole block, and the time of one in half precision's."""
    if instruction.base.startswith("UTC"):
        if not tile:
            raise ValueError(f"{instruction.opcode} {instruction.operands}: its tile is no constant")
        # PTX ISA, "instruction descriptor" of tcgen05: the type in bits 7-9, N / 8 in bits 17-22, M / 16 in bits 24-28.
        # One thread starts it for the block. 32 bytes of each operand's row.
        tile_values = (tile >> 24 & 0x1F) * 16 * (tile >> 17 & 0x3F) * 8
        if instruction.base != "UTCHMMA":
            return tile_values * 32, _EIGHT_BITS
        return (tile_values * 8, _TF32) if tile >> 7 & 7 == _TF32_FORMAT else (tile_values * 16, 1.0)
    if sizes := _TILE.search(instruction.opcode):
        products = int(sizes[1]) * int(sizes[2]) * int(sizes[3])
    else:
        products = _WARP_TILE.get(instruction.opcode.split(".")[1], 0)
    if not products:
        raise ValueError(f"{instruction.opcode}: a tensor-core instruction of unknown size")
    if instruction.base == "DMMA":
        slowness = _DOUBLE
    elif "TF32" in instruction.opcode:
        slowness = _TF32
    else:
        slowness = _EIGHT_BITS if instruction.base in ("QMMA", "IMMA", "QGMMA", "IGMMA") else 1.0
    return products * (num_warps // _GROUP if "GMMA" in instruction.base else num_warps), slowness
