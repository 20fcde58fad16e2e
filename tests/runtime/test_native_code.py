"""The machine code of the products on the CPU (`kernels/runtime/product.h`): their sums stay in registers."""

import platform
import re
import shutil
import subprocess

import pytest

from jepa_fast.kernels.runtime import native

SUMS = 24  # of the largest block, 6 rows x 4 vectors
FEW = 6  # loads and stores that a compiler may need: those of three sums hide behind the other products
STACK = re.compile(r"(?=.*%zmm).*\(%r[sb]p")
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


@pytest.fixture(scope="module")
def loops() -> list[list[str]]:
    library = native.library_path()
    if library is None or platform.machine() != "x86_64" or shutil.which("objdump") is None:
        pytest.skip("expected the native library of an x86-64, and objdump to read it with")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
    ).stdout
    code = [
        (int(found[1], 16), found[2]) for line in listing.splitlines() if (found := INSTRUCTION.match(line))
    ]
    return innermost_loops(code)


@pytest.mark.parametrize(
    "instruction", ["vdpbf16ps", r"vfmadd\d+ps.*%zmm"], ids=["pairs of bfloat16", "float32"]
)
def test_sums_stay_in_registers(loops: list[list[str]], instruction: str) -> None:
    """GCC keeps an array in memory that its assembly names elements of: half the speed."""
    products = [loop for loop in loops if sum(bool(re.match(instruction, text)) for text in loop) >= SUMS]
    assert products
    for loop in products:
        assert len([text for text in loop if STACK.match(text)]) <= FEW
