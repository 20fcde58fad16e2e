"""Peers by name, what is kept for the backward pass, ceilings, and a run where packages are missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jepa_fast.bench import suites
from jepa_fast.bench.measure import Case, ErrorCheck, Row, Times, Trial, run_case, saved_for_backward
from jepa_fast.bench.measure.ceilings import Ceilings, measure_ceilings
from jepa_fast.bench.measure.device_time import calls_needed, sets_needed
from jepa_fast.bench.measure.peers import BY_NAME, NAMES, expanded, missing, peer_of
from jepa_fast.commands.main import main

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
X = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("baseline", "peer"),
    [
        ("I-JEPA eager", "eager"),
        ("embed all, then gather", "eager"),
        ("torch.compile", "compile"),
        ("V-JEPA 2 compiled", "compile"),
        ("SDPA", "sdpa"),
        ("SDPA, padded", "sdpa"),
        ("SDPA flash", "sdpa-flash"),
        ("FlexAttention", "flex"),
        ("flash-attn varlen", "flash-attn"),
        ("xformers", "xformers"),
        ("_foreach_lerp_", "foreach"),
        ("fused AdamW + foreach + casts", "fused-adamw"),
        ("copy of as many bytes", "copy"),
        ("without token_routing", "ablation"),
        ("raw launch", "raw-launch"),
    ],
)
def test_a_baselines_name_says_which_peer_it_is(baseline: str, peer: str) -> None:
    assert peer_of(baseline) == peer


def test_every_peer_is_documented() -> None:
    text = (ROOT / "bench" / "README.md").read_text()
    for name in NAMES:
        assert f"`{name}`" in text, name
    assert expanded(["sdpa", "eager"])[:2] == ("sdpa", "sdpa-flash")


def build(device: torch.device) -> Trial:
    return Trial(
        ours=lambda: X.softmax(-1),
        check=lambda: ErrorCheck(0.0, 0.0, 0.0, 0.0),
        implementation="test",
        baselines={"eager": lambda: X.exp() / X.exp().sum(-1, keepdim=True), "_foreach_x_": lambda: X.exp()},
        on_request={"SDPA math": lambda: X.sin()},
    )


def rows(*against: str) -> list[Row]:
    case = Case("softmax", "64x64", "float32", build, bytes=2 * X.nbytes)
    ceilings = Ceilings(device="cpu", copy_gbs=10.0, matmul_tflops={"float32": 0.1})
    return run_case(case, suite="test", device=CPU, budget_s=0.02, against=against, ceilings=ceilings)


def test_named_peers_run_and_no_others() -> None:
    assert [row.peer for row in rows()] == ["eager", "foreach"]
    (row,) = rows("sdpa-math")
    assert (row.baseline, row.peer) == ("SDPA math", "sdpa-math")
    assert row.copy_share == pytest.approx(2 * X.nbytes / row.time.median / 10e9)
    assert row.matmul_share is None
    assert rows("xformers") == []


@pytest.mark.skipif(bool(BY_NAME["compile"].why_not(CPU)), reason="no C++ compiler")
def test_compile_is_offered_by_every_case() -> None:
    (row,) = rows("compile")
    assert (row.baseline, row.peer, row.reason) == ("torch.compile", "compile", "")
    assert row.ratio


def test_peers_that_cannot_run_are_listed_with_the_command() -> None:
    (line,) = missing(["xformers"], set(), CPU)
    assert line.startswith("xformers: ")
    assert "`pip install xformers` adds it" in line or "CUDA" in line
    assert missing(["foreach"], {"eager"}, CPU) == ["foreach: no case of the chosen suites has it"]
    assert missing(["eager"], {"eager"}, CPU) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["emma"], "got emma; did you mean ema?"),
        (["ema", "--against", "eager,flash-atn"], "got flash-atn; did you mean flash-attn?"),
        (["ema", "--case", "no such case"], "--case: expected a pattern"),
        (["ema", "--export", "test-infra-v3"], "--export and --output: expected both or neither"),
        (["ema", "--save", "--results", "/proc/none"], "--results: /proc/none cannot be written"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.count("\n") == 1


def test_attention_offers_pytorchs_own_peers_on_a_cpu() -> None:
    case = next(
        case
        for case in suites.load("attention").cases()
        if "no rotation" in case.shape and case.dtype == "float32"
    )
    trial = case.build(CPU)
    assert {peer_of(name) for name in trial.on_request} == {"sdpa-flash", "sdpa-math", "flex"}
    assert trial.flops == 4 * 512 * 512 * 6 * 64 * 14
    for name in ("SDPA flash", "SDPA math"):
        for found, expected in zip(trial.on_request[name](), trial.baselines["SDPA"](), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class TestSavedForBackward:
    def test_each_storage_counts_once_and_inputs_do_not(self) -> None:
        x = torch.randn(1000, requires_grad=True)
        assert saved_for_backward(lambda: (x * x).sum().backward()) == 0
        assert saved_for_backward(lambda: x.exp().sum().backward()) == 4000  # its own result
        assert saved_for_backward(lambda: x.exp().sin().exp().sum().backward()) == 8000

    def test_what_autograd_let_go_of_makes_room(self) -> None:
        x = torch.randn(1000, requires_grad=True)

        def one_after_the_other() -> None:
            for _ in range(3):
                x.exp().sum().backward()

        assert saved_for_backward(one_after_the_other) == 4000

    def test_tensors_without_memory_are_passed_over(self) -> None:
        left_behind = torch._to_functional_tensor(torch.ones(3))
        x = torch.randn(1000, requires_grad=True)
        assert saved_for_backward(lambda: x.exp().sum().backward()) == 4000
        del left_behind

    def test_without_gradients_nothing_is_kept(self) -> None:
        assert saved_for_backward(lambda: X.exp()) == 0


def test_ceilings_are_measured_and_shares_are_of_them() -> None:
    found = measure_ceilings(CPU, budget_s=0.05)
    assert found.copy_gbs > 0.1
    assert set(found.matmul_tflops) == {"float32", "bfloat16"}
    assert found.matmul_of("float32 <- bfloat16") == found.matmul_tflops["bfloat16"]
    assert found.matmul_of("int8") is None
    row = Row(suite="s", op="o", shape="x", dtype="float32", device="cpu", bytes=10**9, flops=10**9)
    assert row.with_shares(found).copy_share is None  # no time
    timed = Row(
        suite="s",
        op="o",
        shape="x",
        dtype="float32",
        device="cpu",
        bytes=10**9,
        flops=10**9,
        time=Times(1, 1, 1, 1),
    ).with_shares(found)
    assert timed.copy_share == pytest.approx(1 / found.copy_gbs)
    assert timed.matmul_share == pytest.approx(1e-3 / found.matmul_tflops["float32"])


def test_a_quick_run_leaves_out_products_that_would_take_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = Ceilings(device="cpu", copy_gbs=10.0, matmul_tflops={"float32": 0.2, "bfloat16": 0.01})
    assert slow.is_slow("bfloat16 autocast")
    assert not slow.is_slow("float32")
    assert not slow.is_slow("int8")
    monkeypatch.setattr("jepa_fast.bench.measure.ceilings.measure_ceilings", lambda *_: slow)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "gelu_mlp", "steps", "--quick", "--case", "*bfloat16"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for suite in ("gelu_mlp", "steps"):
        assert f"suite {suite}, bfloat16: this machine multiplies it at less than half the rate" in shown


def test_sets_pass_three_times_the_cache_and_graphs_outlast_their_launch() -> None:
    mebibyte = 2**20
    assert sets_needed(50 * mebibyte, 50 * mebibyte, 2**40) == 3
    assert sets_needed(mebibyte, 50 * mebibyte, 2**40) == 64  # the most
    assert sets_needed(50 * mebibyte, 50 * mebibyte, 60 * mebibyte) == 1  # no memory for a second
    assert sets_needed(2**30, 50 * mebibyte, 2**40) == 1
    assert calls_needed(3, 1.0) == 3
    assert calls_needed(3, 10e-6) == 21
    assert calls_needed(1, 1e-9) == 256


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_time_comes_from_replays() -> None:
    def large(device: torch.device) -> Trial:
        x = torch.randn(2**22, device=device)
        return Trial(x.exp, lambda: ErrorCheck(0.0, 0.0, 0.0, 0.0), "test", {"eager": lambda: x.exp().exp()})

    (row,) = run_case(
        Case("exp", "", "float32", large), suite="test", device=torch.device("cuda"), budget_s=0.5
    )
    assert row.timer == "graph"
    assert row.host_time is not None
    assert row.verdict == "faster"


HIDE = """
import sys
hidden = {hidden!r}
class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hider())
from jepa_fast.commands.main import main
main({arguments!r})
"""


def test_a_case_about_a_package_that_is_missing_is_listed_with_the_command() -> None:
    arguments = ["bench", "accelerate", "--quick", "--case", "*VJEPA2*", "--device", "cpu"]
    code = HIDE.format(hidden=["transformers"], arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = "suite accelerate: transformers is not installed; `pip install transformers` adds it"
    assert done.stdout.count(listed) == 1
    assert "ModuleNotFoundError" not in done.stdout


def test_without_optional_packages_the_rest_works_and_says_what_is_missing(tmp_path: Path) -> None:
    """One process without any of them, for a bench and its record; one for the page on that record."""
    hidden = [
        "scipy",
        "pynvml",
        "matplotlib",
        "flash_attn",
        "xformers",
        "pytest_benchmark",
        "av",
        "skvideo",
        "PIL",
    ]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = HIDE.format(hidden=hidden, arguments=list(arguments))
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        return subprocess.run(
            [sys.executable, "-P", "-c", program],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )

    results = tmp_path / "results"
    bench = ("bench", "latent_loss", "--quick", "--budget", "0.05", "--against", "eager,xformers,flash-attn")
    done = run(*bench, "--save", "--results", str(results))
    assert done.returncode == 0, done.stderr
    assert "latent_prediction_loss" in done.stdout
    assert "scipy is not installed" in done.stdout
    assert "xformers: xformers is not installed; `pip install xformers` adds it" in done.stdout
    assert "flash-attn: flash_attn is not installed; `pip install flash-attn" in done.stdout
    page = tmp_path / "report.html"
    done = run("report", "--results", str(results), "--output", str(page))
    assert done.returncode == 0, done.stderr
    assert "matplotlib is not installed" in page.read_text()
