"""What the attention kernels' machine code must show, on every architecture, without a GPU.

`jepa-fast codegen` holds the same configurations to the gate's general rules (spills, widths, shared memory). Here is
what is particular to attention: which products are formed, of how many channels, and how operands arrive.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jepa_fast.kernels.attention import tiling

# Two bodies in one process: a compiler starts once. It prints, for every configuration, the instructions of the kernel
# and the text that they were assembled from, which has the descriptors of sm_100's products as plain numbers.
SCRIPT = r"""
import json, pathlib, re, subprocess, sys, tempfile
import triton
from triton import knobs
from jepa_fast.kernels.attention import triton_attention
from jepa_fast.kernels.runtime.codegen.compile import compile_cubin

wanted = {tuple(job) for job in json.loads(sys.argv[1])}
found = []
compiled = []
compile_source = triton.compile

def keep(*arguments, **options):
    compiled.append(compile_source(*arguments, **options))
    return compiled[-1]

triton.compile = keep
for configuration in triton_attention.configurations():
    for arch in configuration.architectures or ():
        if (configuration.name, arch) not in wanted:
            continue
        cubin = compile_cubin(configuration, arch)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            pathlib.Path(file.name).write_bytes(cubin.code)
            tool = [knobs.nvidia.cuobjdump.path]
            usage = subprocess.run([*tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
            listing = subprocess.run([*tool, "-sass", file.name], capture_output=True, text=True).stdout
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", listing)
        found.append({
            "name": configuration.name, "arch": arch, "warps": configuration.num_warps,
            "constexprs": dict(configuration.constexprs), "shared": cubin.shared_bytes,
            "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
            "instructions": [[int(address, 16), text] for address, text in lines],
            "ptx": compiled[-1].asm["ptx"] if arch == 100 else "",
        })
print(json.dumps(found))
"""
PRODUCTS = {"forward": 2, "query_gradient": 3, "key_gradient": 4}
HOPPER = [(kernel, head_dim, 90) for kernel in PRODUCTS for head_dim in tiling.PUBLISHED_HEAD_DIMS]
ELSEWHERE = [(kernel, head_dim, arch) for kernel in PRODUCTS for head_dim in (80, 104) for arch in (80, 120)]
BLACKWELL = [(kernel, head_dim, 100) for kernel in PRODUCTS for head_dim in (80, 104)]
BLACKWELL += [("key_gradient", 88, 100), ("query_gradient", 128, 100)]
SPARSE = [("key_gradient_sparse", 104, 120)]
ONLY_SPILLS = [("forward_sparse", 88, 90), ("whole_gradient", 104, 90), ("whole_gradient", 88, 100)]
JOBS = HOPPER + ELSEWHERE + BLACKWELL + SPARSE + ONLY_SPILLS


def _name(kernel: str, head_dim: int, arch: int) -> str:
    family = next(name for name in tiling.HALF_PRECISION if arch in tiling.ARCHITECTURES[name])
    return f"{kernel}/bf16/D={head_dim}/{family}"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Machine code by kernel, head_dim and architecture; compiled by a child, as kernels are interpreted here."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment.setdefault("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    names = {job: _name(*job) for job in JOBS}
    jobs = json.dumps([[name, job[2]] for job, name in names.items()])
    command = [sys.executable, "-c", SCRIPT, jobs]
    finished = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=Path("/")
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    found = {(kernel["name"], kernel["arch"]): kernel for kernel in json.loads(finished.stdout)}
    return {job: found[name, job[2]] for job, name in names.items()}


def _multiplications(kernel: dict[str, Any]) -> int:
    """What the tensor-core instructions of the kernel's text multiply, each counted once."""
    total = 0
    for _, text in kernel["instructions"]:
        words = text.split()
        opcode = words[1] if words[0].startswith("@") else words[0]
        if opcode.startswith("HGMMA."):
            m, n, k = (int(size) for size in opcode.split(".")[1].split("x"))
            total += m * n * k * (kernel["warps"] // 4)  # a group of four warps
        elif opcode.startswith("HMMA.16816"):
            total += 16 * 8 * 16 * kernel["warps"]
    return total


def _main_loop(ptx: str) -> list[str]:
    """The lines of the largest loop, from a label to a branch back to it. Waits for barriers have other labels."""
    lines = ptx.splitlines()
    labels = {
        line.partition(":")[0]: number for number, line in enumerate(lines) if line.startswith("$L__BB")
    }
    loops = [
        lines[labels[branch[1]] : number + 1]
        for number, line in enumerate(lines)
        if (branch := re.search(r"\bbra(?:\.uni)?\s+(\$L__BB\w+);", line)) and labels[branch[1]] <= number
    ]
    return max(loops, key=len, default=[])


def _multiplications_in_tensor_memory(ptx: str) -> int:
    """What a pass of the main loop multiplies by `tcgen05.mma`.

    Tile sizes are in the instruction's descriptor: the columns over 8 from bit 17 on, the rows over 16 from bit 24 on
    (PTX ISA, instruction descriptor of `.kind::f16`); 16 channels are multiplied at a time.
    """
    constants = dict(re.findall(r"mov\.b32\s+(%r\d+), (-?\d+);", ptx))
    total = 0
    for line in _main_loop(ptx):
        if "tcgen05.mma" not in line:
            continue
        assert "cta_group::1.kind::f16" in line
        operand = line.split(",")[3].strip()
        descriptor = int(constants.get(operand, operand))
        total += 8 * (descriptor >> 17 & 63) * 16 * (descriptor >> 24 & 31) * 16
    return total


def _loops_with(kernel: dict[str, Any], *opcodes: str) -> int:
    """How many backward branches jump over at least one instruction of every kind."""
    instructions = kernel["instructions"]
    loops = 0
    for address, text in instructions:
        if "BRA" not in text or "0x" not in text:
            continue
        target = int(text.rsplit("0x", 1)[1].split()[0].rstrip("`)"), 16)
        body = [line for position, line in instructions if target <= position <= address]
        loops += bool(body) and all(any(opcode in line for line in body) for opcode in opcodes)
    return loops


@pytest.mark.parametrize(("kernel", "head_dim", "arch"), HOPPER + ELSEWHERE)
def test_no_product_of_padding(kernels: Any, kernel: str, head_dim: int, arch: int) -> None:
    found = kernels[kernel, head_dim, arch]
    sizes = found["constexprs"]
    tile = sizes["BLOCK_M"] * sizes["BLOCK_N"]
    assert _multiplications(found) == PRODUCTS[kernel] * tile * tiling.width(head_dim)


@pytest.mark.parametrize(("kernel", "head_dim", "arch"), BLACKWELL)
def test_no_product_of_padding_in_tensor_memory(kernels: Any, kernel: str, head_dim: int, arch: int) -> None:
    found = kernels[kernel, head_dim, arch]
    sizes = found["constexprs"]
    tile = sizes["BLOCK_M"] * sizes["BLOCK_N"]
    expected = PRODUCTS[kernel] * tile * tiling.width(head_dim)
    assert _multiplications_in_tensor_memory(found["ptx"]) == expected
    assert not any("HMMA." in line and "UTCHMMA" not in line for _, line in found["instructions"])


@pytest.mark.parametrize(("kernel", "head_dim", "arch"), HOPPER)
def test_hopper_multiplies_by_groups_of_four_warps(
    kernels: Any, kernel: str, head_dim: int, arch: int
) -> None:
    text = [line for _, line in kernels[kernel, head_dim, arch]["instructions"]]
    assert any("HGMMA" in line for line in text)
    assert not any(" HMMA" in f" {line}" for line in text)


@pytest.mark.parametrize(("kernel", "head_dim", "arch"), HOPPER + ELSEWHERE + SPARSE)
def test_asynchronous_copies_in_the_main_loop(kernels: Any, kernel: str, head_dim: int, arch: int) -> None:
    assert _loops_with(kernels[kernel, head_dim, arch], "LDGSTS", "MMA") > 0


@pytest.mark.parametrize(("kernel", "head_dim", "arch"), BLACKWELL)
def test_asynchronous_copies_beside_tensor_memory(
    kernels: Any, kernel: str, head_dim: int, arch: int
) -> None:
    """In the text before assembly, too: waits, which jump back from behind the kernel, look like loops in the code."""
    found = kernels[kernel, head_dim, arch]
    loop = _main_loop(found["ptx"])
    assert any("cp.async" in line and "shared.global" in line for line in loop)
    assert any("LDGSTS" in line for _, line in found["instructions"])


@pytest.mark.parametrize("head_dim", [80, 88])
def test_no_sum_over_parts_goes_back_to_tensor_memory(kernels: Any, head_dim: int) -> None:
    """Written there are p and dS alone, operands of the products that follow, and no product for another to add to."""
    loop = _main_loop(kernels["key_gradient", head_dim, 100]["ptx"])
    assert sum("tcgen05.st" in line for line in loop) == 2


@pytest.mark.parametrize(("kernel", "head_dim", "arch"), JOBS)
def test_nothing_spills(kernels: Any, kernel: str, head_dim: int, arch: int) -> None:
    found = kernels[kernel, head_dim, arch]
    assert found["stack"] == 0
    assert not any(word in line for _, line in found["instructions"] for word in ("LDL", "STL"))
    assert len(found["instructions"]) > 500  # what does not fit into tensor memory compiles to nothing
