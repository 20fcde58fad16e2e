"""`jepa-fast codegen`: what it refuses, what fails the gate, and the stored record."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jepa_fast.commands import codegen_records
from jepa_fast.commands.codegen import Codegen, run
from jepa_fast.commands.errors import UsageError
from jepa_fast.kernels.runtime import codegen, rooms
from jepa_fast.kernels.runtime.codegen import CodegenRecord, Job
from jepa_fast.kernels.runtime.configuration import KernelConfiguration

NAMES = ("forward/small", "forward/large", "backward/small")


def record(op: str, name: str, arch: int) -> CodegenRecord:
    return CodegenRecord(
        op=op,
        name=name,
        arch=arch,
        registers=100,
        stack_bytes=0,
        local_loads=0,
        local_stores=0,
        shared_bytes=0,
        occupancy=0.25,
        instructions=1000,
        main_loop_instructions=200,
        special_functions=0,
        asynchronous_copies=0,
        tensor_core={},
        loads={128: 8},
        stores={128: 4},
    )


@pytest.fixture
def results() -> dict[str, Any]:
    """Changes to the records that the compiler gives, by name; a string stands for its error."""
    return {}


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: dict[str, Any]) -> Path:
    """One op `op` with `NAMES`, a compiler that answers at once, and the path of the stored record."""

    def compile_jobs(jobs: Iterable[Job]) -> Iterator[tuple[Job, CodegenRecord | str]]:
        for job in reversed(list(jobs)):
            changes = results.get(job.name, {})
            if isinstance(changes, str):
                yield job, changes
            else:
                yield job, replace(record(job.op, job.name, job.arch), **changes)

    configurations = {name: KernelConfiguration(name=name, kernel=None, signature={}) for name in NAMES}
    path = tmp_path / "results" / "codegen.json"
    monkeypatch.setattr(rooms, "names", lambda: ["op"])
    monkeypatch.setattr(codegen, "find_modules", lambda op: [f"rooms.{op}.triton_{op}"])
    monkeypatch.setattr(codegen, "configurations", lambda module: configurations)
    monkeypatch.setattr(codegen, "compile_jobs", compile_jobs)
    monkeypatch.setattr(codegen_records, "stored_path", lambda: path)
    return path


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Codegen(ops=("nonsense",)), "op: expected some of op, got nonsense"),
        (Codegen(arch=(90, 75)), "--arch: expected some of 80, 90, 100, 120, got 75"),
        (Codegen(filter="nonsense"), "--filter: no configuration's name contains 'nonsense'"),
        (Codegen(check=True, save=True), "--check and --save exclude each other"),
        (Codegen(check=True, every=True), "--every: the stored record has the sampled configurations alone"),
        (Codegen(json=Path("/nonexistent/records.json")), "--json: /nonexistent is not a folder"),
        (Codegen(check=True), "bench/results/codegen.json does not exist yet"),
    ],
)
@pytest.mark.usefixtures("stored")
def test_bad_input_is_refused(config: Codegen, message: str) -> None:
    with pytest.raises(UsageError, match=r"^" + message):
        run(config)


@pytest.mark.usefixtures("stored")
def test_a_clean_run_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Codegen(arch=(80, 90))) == 0
    out = capsys.readouterr().out
    assert "6 compilations: passed" in out
    assert out.count("forward") == 2  # two forms of one kernel share a row for each architecture


@pytest.mark.usefixtures("stored")
def test_a_sample_on_its_own_architectures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = KernelConfiguration(name="tuned", kernel=None, signature={}, architectures=(90,))
    rare = replace(tuned, name="rare", architectures=None, sampled=False)
    monkeypatch.setattr(codegen, "configurations", lambda module: {c.name: c for c in (tuned, rare)})
    assert run(Codegen()) == 0
    assert run(Codegen(every=True)) == 0
    out = capsys.readouterr().out
    assert "1 compilations: passed" in out
    assert "5 compilations: passed" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local_loads": 3}, "op/backward/small sm_90: spills: 0 B of stack, 3 local loads, 0 local stores"),
        ({"loads": {32: 8}}, "op/backward/small sm_90: expected a 128-bit global load"),
        ("does not compile: E: no", "op/backward/small sm_90: does not compile: E: no"),
    ],
)
def test_a_failure_is_a_line_and_exit_code_1(
    stored: Path,
    results: dict[str, Any],
    changes: dict[str, Any] | str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results["backward/small"] = changes
    assert run(Codegen(arch=(90,), save=True)) == 1
    out = capsys.readouterr().out
    assert any(line.startswith(message) for line in out.splitlines())
    assert "stored record left as it was" in out
    assert not stored.exists()


@pytest.mark.usefixtures("stored")
def test_growth_fails_only_against_the_stored_record(
    results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Codegen(save=True)) == 0
    assert run(Codegen(check=True)) == 0
    results["forward/large"] = {"registers": 111}
    assert run(Codegen()) == 0
    capsys.readouterr()
    assert run(Codegen(check=True, arch=(90,))) == 1
    assert "op/forward/large sm_90: registers grew from 100 to 111" in capsys.readouterr().out


def test_missing_and_stale_configurations_are_named(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = [record("op", name, 90) for name in NAMES[1:]]
    codegen_records.write(stored, version(), [*kept, record("op", "gone", 90), record("op", "gone", 80)])
    assert run(Codegen(check=True, arch=(90,))) == 1
    out = capsys.readouterr().out
    assert "op/forward/small sm_90: not in the stored record" in out
    assert "op/gone sm_90: in the stored record, but no configuration any more" in out
    assert "2 failures" in out  # sm_80 was not asked for


def test_a_partial_save_keeps_the_rest(stored: Path, results: dict[str, Any]) -> None:
    assert run(Codegen(save=True)) == 0
    results.update({name: {"registers": 90} for name in NAMES})
    assert run(Codegen(save=True, arch=(90,), filter="forward")) == 0
    renewed = {
        (r["name"], r["arch"]) for r in json.loads(stored.read_text())["records"] if r["registers"] == 90
    }
    assert renewed == {("forward/small", 90), ("forward/large", 90)}
    assert len(codegen_records.read(stored).records) == 12


def test_a_record_of_another_compiler_is_not_compared(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codegen_records.write(stored, "3.0.0", [record("op", name, arch) for name in NAMES for arch in (80, 90)])
    assert run(Codegen(check=True, arch=(90,))) == 1
    assert "the stored record is from triton 3.0.0: renew it with --save" in capsys.readouterr().out
    with pytest.raises(UsageError, match="save all ops and architectures at once"):
        run(Codegen(save=True, arch=(90,)))


@pytest.mark.parametrize("text", ["{", '{"version": 1, "triton": "3.7.1", "records": [{"op": 1}]}'])
def test_a_broken_record_is_bad_input(stored: Path, text: str) -> None:
    stored.parent.mkdir()
    stored.write_text(text)
    with pytest.raises(UsageError, match=r"bench/results/codegen.json: .* write it anew with --save"):
        run(Codegen(check=True))


@pytest.mark.usefixtures("stored")
def test_records_go_to_a_file_of_choice(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    assert run(Codegen(json=path, arch=(90,))) == 0
    assert [r.name for r in codegen_records.read(path).records] == sorted(NAMES)


def version() -> str:
    import triton

    return triton.__version__
