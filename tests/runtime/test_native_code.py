"""The machine code of the products on the CPU (`kernels/runtime/product.h`): their sums stay in registers."""

import functools
import platform
import re
import shutil
import subprocess

import pytest

from jepa_fast.kernels.runtime import native

ROWS = 6  # of the largest block; each takes a broadcast
FEW = 6  # loads and stores that a compiler may need: those of three sums hide behind the other products
STACK = re.compile(r"(?=.*%[yz]mm).*\(%r[sb]p")
INSTRUCTION = re.compile(r"\s+([0-9a-f]+):\s+(\S.*)")
JUMP = re.compile(r"j\w+\s+([0-9a-f]+)")


def innermost_loops(code: list[tuple[int, str]]) -> list[list[str]]:
    """What is between a jump back and its target without another jump back in between."""
    place = {address: number for number, (address, _) in enumerate(code)}
    loops, last = [], -1
    for number, (address, text) in enumerate(code):
        jump = JUMP.match(text)
        target = int(jump[1], 16) if jump else address
        if target < address and target in place:
            if place[target] > last:
                loops.append([text for _, text in code[place[target] : number]])
            last = number
    return loops


@functools.cache
def loops_of(name: str) -> list[list[str]]:
    here = native.library_path()
    if here is None or platform.machine() != "x86_64" or shutil.which("objdump") is None:
        pytest.skip("expected the native libraries of an x86-64, and objdump to read them with")
    library = here.with_name(name)
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
    ).stdout
    code = [
        (int(found[1], 16), found[2]) for line in listing.splitlines() if (found := INSTRUCTION.match(line))
    ]
    return innermost_loops(code)


@pytest.mark.parametrize(
    ("library", "instruction", "vectors"),
    [
        ("AVX512", "vdpbf16ps", 4),
        ("AVX512", r"vfmadd\d+ps.*%zmm", 4),
        ("AVX2", r"vfmadd\d+ps.*%ymm", 2),
    ],
)
def test_sums_stay_in_registers(library: str, instruction: str, vectors: int) -> None:
    """GCC keeps in memory an array that its assembly names elements of, at half the speed, and vectors wider than a
    register, at a tenth of it."""

    def count(pattern: str, loop: list[str]) -> int:
        return sum(bool(re.match(pattern, text)) for text in loop)

    products = [
        loop
        for loop in loops_of(native.LIBRARIES[library])
        if count(instruction, loop) == ROWS * vectors and count("vp?broadcast", loop) == ROWS
    ]
    assert products
    for loop in products:
        assert len([text for text in loop if STACK.match(text)]) <= FEW


def test_tiles_are_loaded_once_for_two_products() -> None:
    """AMX: two tiles of either factor give four products."""

    def count(instruction: str, loop: list[str]) -> int:
        return sum(text.startswith(instruction) for text in loop)

    loops = [loop for loop in loops_of(native.LIBRARIES["AVX512"]) if count("tdpbf16ps", loop) == 4]
    assert loops
    for loop in loops:
        assert count("tileloadd", loop) == 4
        assert count("tilestored", loop) == 0
