"""The instructions behind a failure: where they stand in the machine code, and which source line they come from."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from . import sass
from .loops import main_loop

_SHOWN = 6  # instructions of an excerpt
_SOURCE = re.compile(r'^\s*//## File "([^"]+)", line (\d+)')
_LABEL = re.compile(r"^(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_NARROW_BITS = 128
_PLAIN_PRODUCTS = {"FFMA", "HFMA2", "DFMA", "FFMA2"}


class Line(NamedTuple):
    """An instruction and the source line that the compiler names for it: `kernels/ema/triton_ema.py:50`."""

    source: str
    instruction: sass.Instruction

    def __str__(self) -> str:
        code = self.instruction
        return f"/*{code.address:04x}*/ {code.opcode} {code.operands}".rstrip()


def listing(cubin: bytes) -> list[Line]:
    """Every instruction of a cubin with its source line."""
    from triton import knobs

    text = sass.run(knobs.nvidia.nvdisasm.path, "--print-line-info", "--print-code", data=cubin)
    lines: list[Line] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []  # labels ahead of the next instruction
    source = ""
    for row in text.splitlines():
        if place := _SOURCE.match(row):
            source = f"{place[1]}:{place[2]}"
        elif label := _LABEL.match(row):
            waiting.append(label[1])
        else:
            for instruction in sass.parse(row):
                labels.update(dict.fromkeys(waiting, instruction.address))
                lines.append(Line(source, instruction))
                waiting = []
    return [Line(line.source, _resolved(line.instruction, labels)) for line in lines]


def _resolved(instruction: sass.Instruction, labels: dict[str, int]) -> sass.Instruction:
    """With the address that stands for the label which it jumps to."""
    target = _TARGET.search(instruction.operands)
    if target is None or not instruction.opcode.startswith(("BRA", "JMP")):
        return instruction
    conditional = instruction.conditional or "," in instruction.operands
    return replace(instruction, target=labels.get(target[1]), conditional=conditional)


def excerpt(cubin: bytes, kind: str) -> list[str]:
    """The instructions that show a failure of `kind`, `Failure.kind`, each after its source line, ready to print."""
    lines = listing(cubin)
    shows = _SHOWS.get(kind)
    chosen = [line for line in lines if shows(line.instruction)] if shows else []
    if not chosen:  # the main loop, or the whole kernel
        loop = {i.address for i in main_loop([line.instruction for line in lines], len)}
        chosen = [line for line in lines if not loop or line.instruction.address in loop]
    text: list[str] = []
    source = ""
    for line in chosen[:_SHOWN]:
        if line.source != source:
            source = line.source
            text.append(f"  {relative(source)}")
        text.append(f"    {line}")
    if len(chosen) > _SHOWN:
        text.append(f"    ... and {len(chosen) - _SHOWN} more")
    return text


def relative(path: str) -> str:
    """Below the current folder as seen from there, in a library as seen from where libraries are."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path.rpartition("/site-packages/")[2]


def _narrow(bases: set[str]) -> Callable[[sass.Instruction], bool]:
    return lambda i: i.base in bases and i.width_bits < _NARROW_BITS


_SHOWS: dict[str, Callable[[sass.Instruction], bool]] = {
    "spill": lambda i: i.base in ("LDL", "STL") or "[R1+" in i.operands,
    "load": _narrow(sass.GLOBAL_LOADS),
    "store": _narrow(sass.GLOBAL_STORES),
    "tensor": lambda i: i.base in _PLAIN_PRODUCTS and "-RZ, RZ" not in i.operands,  # that is a move
}
