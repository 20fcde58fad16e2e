"""`python -m jepa_fast.accelerate SCRIPT`: an unmodified script, its report, and `verify`."""

import subprocess
import sys
from pathlib import Path

import accelerate_standin_losses as standin_losses
import accelerate_standins as standins
import pytest
import torch
from torch import nn

from jepa_fast import optimize_, verify

SCRIPT = """
import sys
import torch
from torch import nn
import standins
from library import update_momentum

torch.manual_seed(0)
model, teacher = (nn.Sequential(standins.Timm.Block(48, 2), nn.Linear(48, 3)) for _ in range(2))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
x = torch.randn(2, 9, 48)
for _ in range(3):
    model.eval()(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    update_momentum(model, teacher, 0.9)
print("arguments", sys.argv[1:])
print("loss", model(x).square().mean().item())
print("classes", type(model[0].attn).__mro__[1].__name__, __name__)
"""
LIBRARY = """
import torch

def update_momentum(model, model_ema, m):
    with torch.no_grad():
        for online, average in zip(model.parameters(), model_ema.parameters()):
            average.mul_(m).add_(online, alpha=1 - m)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT.replace("from library", "from lightly.models.utils"))
    (tmp_path / "lightly" / "models").mkdir(parents=True)
    (tmp_path / "lightly" / "models" / "utils.py").write_text(LIBRARY)
    (tmp_path / "standins.py").write_text(Path(standins.__file__).read_text())
    return tmp_path / "train.py"


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=200)


def test_unmodified_script(script: Path) -> None:
    plain = run(str(script), "--epochs", "3")
    fast = run("-m", "jepa_fast.accelerate", str(script), "--epochs", "3")
    assert plain.returncode == fast.returncode == 0, fast.stderr
    (arguments, loss, classes), (same, ours, patched) = (found.stdout.splitlines() for found in (plain, fast))
    assert arguments == same == "arguments ['--epochs', '3']"
    assert abs(float(loss.split()[1]) - float(ours.split()[1])) < 1e-5
    assert classes == "classes _QKV __main__"
    assert patched == "classes Attention __main__"  # a class above the published one
    for word in (
        "4 replaced, 0 left alone",
        "masked_attention",
        "gelu_mlp",
        "add_layer_norm",
        "update_momentum",
        "ema_update_",
    ):
        assert word in fast.stderr, fast.stderr


def test_the_report_comes_with_a_failure_too(script: Path) -> None:
    script.write_text(script.read_text() + "\nraise SystemExit(3)\n")
    found = run("-m", "jepa_fast.accelerate", str(script))
    assert found.returncode == 3
    assert "4 replaced, 0 left alone" in found.stderr


def test_usage() -> None:
    found = run("-m", "jepa_fast.accelerate")
    assert found.returncode == 2
    assert "usage: python -m jepa_fast.accelerate SCRIPT" in found.stderr


def test_verify() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(standins.Timm.Block(48, 2), nn.Linear(48, 3)).eval()
    optimize_(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = verify(model, torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {row.name for row in found.rows} == {"0", "0.attn", "0.mlp", ""}
    for row in found.rows:
        assert row.reason is None, row
        assert row.error_ratio <= 4
        assert row.difference < 1e-5
        assert row.time_ratio > 0
    assert "masked_attention" in str(found)
    assert "times faster" in str(found)


def test_verify_finds_a_wrong_replacement(monkeypatch) -> None:
    from jepa_fast.accelerate.patching import adapter_of

    model = nn.Sequential(standins.Timm.Block(48, 2)).eval()
    optimize_(model)
    right = type(model[0].mlp).forward
    monkeypatch.setattr(type(model[0].mlp), "forward", lambda self, x: 1.01 * right(self, x))
    assert adapter_of(model[0].mlp) is not None
    (row,) = [row for row in verify(model, torch.randn(2, 9, 48)).rows if row.name == "0.mlp"]
    assert row.error_ratio > 1000


def test_verify_a_loss() -> None:
    loss = standin_losses.SlicedEppsPulley()
    optimize_(loss)
    (row,) = verify(loss, torch.randn(24, 12)).rows
    assert row.difference < 1e-5
    assert loss.global_step == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (nn.Linear(2, 2), torch.zeros(1, 2)),
            ValueError,
            "^model: expected modules that optimize_ has replaced",
        ),
        (("model",), TypeError, "^model: expected a torch.nn.Module"),
    ],
)
def test_verify_refuses(arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        verify(*arguments)


def test_verify_wants_a_sample() -> None:
    model = standins.MLP(48, 96)
    optimize_(model)
    with pytest.raises(ValueError, match=r"^sample: expected"):
        verify(model)
