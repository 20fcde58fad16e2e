"""What the key of a compilation depends on, and what it does not."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

from jepa_fast.kernels.runtime.codegen import compilation_key, dependencies
from jepa_fast.kernels.runtime.configuration import KernelConfiguration

CONSTANTS = """
import triton.language as tl
SCALE: tl.constexpr = tl.constexpr(2)
"""
HELPERS = """
import triton
from . import constants

@triton.jit
def inner(x):
    return x * constants.SCALE
"""
KERNEL = '''
import triton
import triton.language as tl
from .helpers import inner

WIDTH = tl.constexpr(4)

@triton.jit
def helper(x):
    """Doubles."""
    return inner(x) + WIDTH

@triton.jit
def kernel(p_x, n, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)  # [BLOCK]
    tl.store(p_x + o, helper(tl.load(p_x + o, mask=o < n)), mask=o < n)
'''
SOURCES = {"constants": CONSTANTS, "helpers": HELPERS, "kernel": KERNEL}
Load = Callable[..., KernelConfiguration]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Writes the three modules, changed as asked for, imports them afresh, and returns the kernel's configuration."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    times = iter(range(1000))

    def fresh(module: str = "", old: str = "", new: str = "") -> KernelConfiguration:
        folder = tmp_path / str(next(times)) / "keyed"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        for name, source in SOURCES.items():
            assert name != module or old in source
            (folder / f"{name}.py").write_text(source.replace(old, new) if name == module else source)
        for name in [name for name in sys.modules if name.partition(".")[0] == "keyed"]:
            del sys.modules[name]
        monkeypatch.syspath_prepend(folder.parent)
        return KernelConfiguration(
            name="kernel/form",
            kernel=importlib.import_module("keyed.kernel").kernel,
            signature={"p_x": "*fp32", "n": "i32"},
            constexprs={"BLOCK": 128},
            divisible_by_16=("p_x", "n"),
        )

    return fresh


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("kernel", "o < n", "o <= n"),  # the kernel
        ("kernel", "inner(x) + WIDTH", "inner(x) - WIDTH"),  # what it calls
        ("kernel", "constexpr(4)", "constexpr(8)"),  # a constant of that
        ("helpers", "x * constants", "x / constants"),  # what that calls, of another module
        ("constants", "constexpr(2)", "constexpr(3)"),  # a constant that is read through a module
    ],
)
def test_a_change_of_anything_that_is_compiled_changes_the_key(
    load: Load, module: str, old: str, new: str
) -> None:
    before, after = load(), load(module, old, new)
    assert dependencies(before.kernel) != dependencies(after.kernel)
    assert compilation_key(before, 90) != compilation_key(after, 90)


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("kernel", "# [BLOCK]", "# a comment"),
        ("kernel", "Doubles.", "Another docstring."),
        ("kernel", "WIDTH = ", "\n\n\nUNUSED = 5\nWIDTH = "),  # every line moves
        ("kernel", "inner(x) + WIDTH", "(inner(x)  +  WIDTH)"),
    ],
)
def test_what_is_not_compiled_leaves_the_key(load: Load, module: str, old: str, new: str) -> None:
    assert compilation_key(load(), 90) == compilation_key(load(module, old, new), 90)


def test_arguments_options_and_architecture_are_in_the_key(load: Load) -> None:
    configuration = load()
    changed = [
        replace(configuration, signature={"p_x": "*fp16", "n": "i32"}),
        replace(configuration, constexprs={"BLOCK": 256}),
        replace(configuration, constexprs={"BLOCK": True}),
        replace(configuration, divisible_by_16=("p_x",)),
        replace(configuration, num_warps=8),
        replace(configuration, num_stages=3),
        replace(configuration, max_registers=128),
        replace(configuration, enable_fp_fusion=False),
    ]
    keys = [compilation_key(c, 90) for c in (configuration, *changed)]
    keys += [compilation_key(configuration, arch) for arch in (80, 100, 120)]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in keys)


def test_names_claims_and_order_are_not(load: Load) -> None:
    configuration = load()
    same = [
        replace(configuration, name="other", expected_load_bits=0, expected_tensor_core=True, sampled=False),
        replace(configuration, divisible_by_16=("n", "p_x")),
        replace(configuration, signature={"n": "i32", "p_x": "*fp32"}),
    ]
    assert {compilation_key(c, 90) for c in same} == {compilation_key(configuration, 90)}


def test_an_interpreted_kernel_has_the_same_key(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = load()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    interpreted = load()
    assert type(interpreted.kernel) is not type(compiled.kernel)
    assert compilation_key(interpreted, 90) == compilation_key(compiled, 90)
