"""What imports what: kernels <- jepa_fast <- bench, and nothing heavy before it is needed."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
PACKAGE = sorted((ROOT / "jepa_fast").rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(level, module) of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def test_kernels_import_torch_and_themselves() -> None:
    allowed = sys.stdlib_module_names | {"torch", "triton", "tvm_ffi"}
    assert KERNELS
    for path in KERNELS:
        depth = len(path.relative_to(ROOT / "kernels").parts)  # dots that lead to kernels/ itself
        for level, module in imports(path):
            if level == 0:
                assert module.partition(".")[0] in allowed, f"{path}: {module}"
            else:
                assert level <= depth, f"{path}: {'.' * level}{module}"


def test_implementations_never_import_each_other() -> None:
    names = {"reference", "native", "cpu"}
    for path in KERNELS:
        if path.stem in names or path.stem.startswith("triton_"):
            siblings = {module for level, module in imports(path) if level == 1}
            assert not any(m in names or m.startswith("triton_") for m in siblings), f"{path}: {siblings}"


def test_kernels_itself_is_no_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_only_commands_import_the_bench() -> None:
    for path in PACKAGE:
        if path.is_relative_to(ROOT / "jepa_fast" / "commands"):
            continue
        for level, module in imports(path):
            assert not module.startswith("jepa_fast.bench"), f"{path}: {module}"
            assert not (level and module.split(".")[0] == "bench"), f"{path}: {module}"


CALL_ON_THE_CPU = """
import sys
import jepa_fast
assert "torch" not in sys.modules
import torch
target = torch.zeros(4)
jepa_fast.ema_update_([target], [torch.ones(4)], 0.5)
prediction = torch.zeros(1, 2, 4, requires_grad=True)
jepa_fast.latent_prediction_loss(prediction, torch.ones(1, 2, 4)).backward()
print(jepa_fast.explain("ema", [target], [torch.ones(4)]).chosen)
assert not [name for name in sys.modules if name.partition(".")[0] == "triton"]
"""


@pytest.mark.parametrize("implementation", [pytest.param("native", marks=pytest.mark.native), "reference"])
def test_a_call_on_the_cpu_never_loads_triton(implementation: str) -> None:
    environment = {
        **os.environ,
        "JEPA_FAST_IMPLEMENTATION": {"native": "auto"}.get(implementation, implementation),
    }
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", CALL_ON_THE_CPU], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == implementation
