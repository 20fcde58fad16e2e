"""The whole command on real kernels that get worse: what it says, and how it exits."""

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")

from jepa_fast.commands import codegen_records
from jepa_fast.commands.main import main
from jepa_fast.kernels.runtime import codegen, rooms

KERNELS = """
import triton
import triton.language as tl
from jepa_fast.kernels.runtime.configuration import KernelConfiguration

@triton.jit
def copy_kernel(p_in, p_out, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.load(p_in + o, mask=o < n), mask=o < n)

@triton.jit
def product_kernel(p_a, p_b, p_c, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    o_m, o_n, o_k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    b_c = tl.zeros((M, N), tl.float32)
    for i_k in range(0, k, K):
        b_a = tl.load(p_a + o_m[:, None] * k + (i_k + o_k)[None, :])
        b_b = tl.load(p_b + (i_k + o_k)[:, None] * N + o_n[None, :])
        b_c = PRODUCT
    tl.store(p_c + o_m[:, None] * N + o_n[None, :], b_c)

def product(name, m, n, kernel=product_kernel):
    return KernelConfiguration(
        name=name,
        kernel=kernel,
        signature={"p_a": "*bf16", "p_b": "*bf16", "p_c": "*fp32", "k": "i32"},
        constexprs={"M": m, "N": n, "K": 16},
        divisible_by_16=("p_a", "p_b", "p_c", "k"),
        expected_load_bits=0,
        expected_store_bits=0,
        expected_tensor_core=True,
        architectures=(90,),
    )

def configurations():
    yield KernelConfiguration(
        name="copy/form",
        kernel=copy_kernel,
        signature={"p_in": "*fp32", "p_out": "*fp32", "n": "i32"},
        constexprs={"BLOCK": 1024},
        divisible_by_16=ALIGNED,
        architectures=(90,),
    )
    yield product("product/form", 16, 16)
    yield product("tile/form", 128, TILE_N, tile_kernel)

"""
TILE = KERNELS[KERNELS.index("@triton.jit\ndef product_kernel") : KERNELS.index("def product(")].replace(
    "product_kernel", "tile_kernel"
)


def source(product: str, tile: int, aligned: str) -> str:
    """Kernels whose product, tile and alignment are as given; a tile of its own always multiplies by tl.dot."""
    dot = "tl.dot(b_a, b_b, b_c)"
    text = KERNELS.replace("PRODUCT", product).replace("TILE_N", str(tile)).replace("ALIGNED", aligned)
    return text.replace("def product(name", TILE.replace("PRODUCT", dot) + "def product(name")


GOOD = source("tl.dot(b_a, b_b, b_c)", 64, '("p_in", "p_out", "n")')
WORSE = source("b_c + tl.sum(b_a[:, :, None].to(tl.float32) * b_b[None, :, :], axis=1)", 256, "()")

STEADY = (
    (
        KERNELS[: KERNELS.index("@triton.jit\ndef product_kernel")]
        + KERNELS[KERNELS.index("def configurations") :].partition("    yield product")[0]
    )
    .replace("copy/form", "steady/form")
    .replace("ALIGNED", '("p_in", "p_out", "n")')
)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One room with the kernels above, and where its record goes."""
    for name, text in (("gated_good", GOOD), ("gated_worse", WORSE), ("gated_steady", STEADY)):
        (tmp_path / f"{name}.py").write_text(text)
    path = tmp_path / "codegen.json"
    monkeypatch.syspath_prepend(tmp_path)  # worker processes inherit it
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(rooms, "names", lambda: ["gated"])
    monkeypatch.setattr(codegen, "find_modules", lambda op: ["gated_good", "gated_steady"])
    monkeypatch.setattr(codegen_records, "stored_path", lambda: path)
    return path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["codegen", *arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_worse_code_and_a_forged_record_fail_the_check(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--update") == 0
    assert "4 new" in capsys.readouterr().out
    content = json.loads(stored.read_text())
    next(record for record in content["records"] if record["name"] == "steady/form")["registers"] += 1
    stored.write_text(json.dumps(content))
    monkeypatch.setattr(codegen, "find_modules", lambda op: ["gated_worse", "gated_steady"])
    assert run("--check") == 1
    out = capsys.readouterr().out
    # Three have changed; the fourth is the sample of its kernel.
    assert "4 compilations (4 now, 0 from the cache, 0 as recorded): " in out

    spilled = section(out, "gated/tile/form sm_90")
    assert "gated/tile/form sm_90: spills:" in spilled
    assert "STL" in spilled
    assert f"gated_worse.py:{line('def tile_kernel') - 1}: tile_kernel" in spilled  # at its decorator

    plain = section(out, "gated/product/form sm_90")
    assert "expected tensor-core instructions, found none" in plain
    assert "tensor-core instructions: lost HMMA, now none" in plain
    assert "FFMA" in plain or "FMUL" in plain
    assert "triton/language/standard.py:" in plain  # the sum's source, which is the compiler's

    narrow = section(out, "gated/copy/form sm_90")
    assert "expected a 128-bit global load, the widest has 32 bits" in narrow
    assert "128-bit stores fell from 2 to 0" in narrow
    assert "LDG.E R" in narrow
    assert f"gated_worse.py:{line('tl.load(p_in')}" in narrow

    forged = section(out, "gated/steady/form sm_90")
    assert "the stored record is not what this source compiles to: registers" in forged


def section(out: str, label: str) -> str:
    """The lines on one compilation: its failures, and what is printed below them."""
    lines: list[str] = []
    for row in out.splitlines():
        if row.startswith("gated/") and not row.startswith(label):
            if lines:
                break
        elif lines or row.startswith(label):
            lines.append(row)
    return "\n".join(lines)


def line(text: str) -> int:
    return next(i for i, row in enumerate(WORSE.splitlines(), 1) if text in row)
