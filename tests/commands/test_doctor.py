"""`jepa-fast doctor`: a picture of the machine, never a traceback."""

import pytest

from jepa_fast.commands import doctor
from jepa_fast.commands.doctor import Doctor, run
from jepa_fast.kernels.runtime import rooms


def test_every_op_has_something_to_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert run(Doctor()) == 0
    out = capsys.readouterr().out
    for word in ("python", "torch", "triton", "apache-tvm-ffi", "cpu", "native", "ema", "latent_loss"):
        assert word in out


def test_a_broken_op_is_shown_and_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "names", lambda: ["nonsense"])
    assert run(Doctor()) == 1
    out = capsys.readouterr().out
    assert "nothing" in out
    assert "ModuleNotFoundError" in out


def test_missing_packages_come_with_the_command_that_brings_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = doctor._version
    absent = {"triton", "scipy", "av"}
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in absent else installed(name))
    assert run(Doctor()) == 0
    advice = capsys.readouterr().out.partition("To do")[2]
    assert "pip install 'triton>=3.6'" in advice
    assert "`pip install 'jepa-fast[data]'` brings images and videos (av" in advice
    assert "`pip install 'jepa-fast[bench]'` brings measurements and reports (" in advice
