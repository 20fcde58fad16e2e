"""Which implementation serves, and why the others do not."""

from pathlib import Path

import pytest
import torch

import jepa_fast
from jepa_fast import ema_update_, explain, latent_prediction_loss
from jepa_fast.kernels.runtime import choice, native, products, rooms, triton_support
from jepa_fast.kernels.runtime.choice import ENVIRONMENT_VARIABLE, Operation


def pair(dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [torch.zeros(4, dtype=dtype)], [torch.ones(4, dtype=dtype)]


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch):
    """An installation that was built without a C++ compiler."""
    monkeypatch.setattr(native, "library_path", lambda: None)
    native._load.cache_clear()
    choice._able.cache_clear()
    native.function.cache_clear()
    products._with_avx2_alone.cache_clear()
    yield
    native._load.cache_clear()
    choice._able.cache_clear()
    native.function.cache_clear()
    products._with_avx2_alone.cache_clear()


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.native
@pytest.mark.usefixtures("no_interpreter")
def test_order_on_the_cpu() -> None:
    explanation = explain("ema", *pair(), 0.9)
    assert explanation.chosen == "native"
    assert list(explanation.refusals) == ["reference", "triton"]
    assert explanation.refusals["reference"] == ["native comes first on cpu"]
    assert explanation.refusals["triton"] == [
        "the tensors are on cpu, not cuda (TRITON_INTERPRET=1 interprets kernels on the CPU)"
    ]


@pytest.mark.native
def test_the_interpreter_has_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    explanation = explain("ema", *pair(), 0.9)
    assert explanation.chosen == "native"
    assert explanation.refusals["triton"] == ["never chosen automatically on cpu; ask for it by name"]


@pytest.mark.native
@pytest.mark.usefixtures("no_interpreter")
def test_every_refusal_is_listed() -> None:
    explanation = explain("ema", *pair(torch.float64), 0.9)
    assert explanation.chosen == "reference"
    assert explanation.refusals["native"] == [
        "targets[0] is torch.float64; kernels take float32, bfloat16 and float16",
        "sources[0] is torch.float64; kernels take float32, bfloat16 and float16",
    ]
    text = str(explanation)
    assert text.startswith("ema: reference\n  not native: targets[0] is torch.float64; ")
    assert "\n  not triton: the tensors are on cpu" in text


@pytest.mark.parametrize("op", ["ema", "ema_update_", ema_update_])
def test_an_op_has_three_names(op: object) -> None:
    assert explain(op, *pair()).op == "ema"


def test_unknown_ops_are_refused() -> None:
    for op, got in (("emma", "'emma'"), (len, "'len'")):
        with pytest.raises(ValueError, match=rf"op: expected one of .*ema_update_, .*, got {got}"):
            explain(op)
    with pytest.raises(ValueError, match=r"op: expected one of .*ema, .*, got 'emma'"):
        rooms.api("emma")


@pytest.mark.native
def test_every_room_answers_for_its_example() -> None:
    assert {"ema", "latent_loss"} <= set(rooms.names())
    for room in rooms.names():
        module = rooms.api(room)
        assert module.explain(*module.example_inputs(torch.device("cpu"))).chosen == "native"
        for name in module.__all__:
            assert getattr(jepa_fast, name) is getattr(module, name)


@pytest.mark.native
def test_environment_overrides_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    explanation = explain("ema", *pair(), 0.9)
    assert explanation.chosen == "reference"
    assert explanation.refusals["native"] == ["JEPA_FAST_IMPLEMENTATION=reference"]
    operation = rooms.api("ema").OPERATION
    plan = rooms.api("ema").plans.find(*pair(), torch.device("cpu"))
    assert operation.choose("auto", torch.device("cpu"), plan).__name__.endswith(".ema.reference")
    # What the call asks for by name stays.
    assert operation.choose("native", torch.device("cpu"), plan).__name__.endswith(".ema.native")
    for same_as_unset in ("", "auto"):
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, same_as_unset)
        assert explain("ema", *pair(), 0.9).chosen == "native"


@pytest.mark.native
def test_bad_overrides_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "fast")
    message = "JEPA_FAST_IMPLEMENTATION: expected auto, triton, native, reference, got 'fast'"
    for call in (lambda: ema_update_(*pair(), 0.9), lambda: explain("ema", *pair())):
        with pytest.raises(ValueError, match=message):
            call()
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "native")
    message = r"JEPA_FAST_IMPLEMENTATION: native cannot serve ema: targets\[0\] is torch.float64"
    for call in (
        lambda: ema_update_(*pair(torch.float64), 0.9),
        lambda: explain("ema", *pair(torch.float64)),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.native
def test_a_request_is_never_replaced() -> None:
    with pytest.raises(RuntimeError, match=r"implementation: native cannot serve ema: .*float64"):
        ema_update_(*pair(torch.float64), 0.9, implementation="native")
    with pytest.raises(
        ValueError, match="implementation: expected auto, triton, native, reference, got 'fast'"
    ):
        ema_update_(*pair(), 0.9, implementation="fast")


def test_an_op_may_lack_an_implementation() -> None:
    operation = Operation("sample", "jepa_fast.kernels.ema", triton=None)
    assert operation.why_not("triton", torch.device("cpu")) == ["sample has no triton implementation"]


def test_other_devices_are_served_by_the_reference() -> None:
    target = torch.zeros(4, device="meta")
    explanation = explain("ema", [target], [torch.zeros(4, device="meta")])
    assert explanation.chosen == "reference"
    assert explanation.refusals["native"] == ["the tensors are on meta, not cpu"]


@pytest.mark.usefixtures("no_library")
def test_without_the_library_the_reference_serves() -> None:
    reason = (
        "libjepa_fast_cpu.so is not part of this installation (it was built without a C++ compiler); "
        "install a C++17 compiler and reinstall jepa-fast"
    )
    targets, sources = pair()
    explanation = explain("ema", targets, sources)
    assert (explanation.chosen, explanation.refusals["native"]) == ("reference", [reason])
    ema_update_(targets, sources, 0.75)
    assert (targets[0] == 0.25).all()
    assert latent_prediction_loss(torch.zeros(1, 2, 4), torch.ones(1, 2, 4)).item() == 0.0
    with pytest.raises(RuntimeError, match=r"native cannot serve ema: libjepa_fast_cpu\.so is not part"):
        ema_update_(targets, sources, 0.75, implementation="native")


@pytest.mark.usefixtures("no_library")
def test_a_library_that_does_not_load_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / native.LIBRARY
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "library_path", lambda: broken)
    explanation = explain("ema", *pair())
    assert explanation.chosen == "reference"
    assert explanation.refusals["native"][0].startswith("libjepa_fast_cpu.so could not be loaded: ")


@pytest.mark.usefixtures("no_interpreter")
def test_old_gpus_and_missing_triton_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(triton_support, "_capability", lambda index: (7, 5))
    assert triton_support.why_not(cuda) == ["compute capability 7.5 is below 8.0"]
    monkeypatch.setattr(triton_support, "_capability", lambda index: (9, 0))
    assert triton_support.why_not(cuda) == []
    monkeypatch.setattr(triton_support, "_installed", lambda: False)
    assert triton_support.why_not(cuda) == ["the package triton is not installed"]
