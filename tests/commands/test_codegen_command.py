"""`jepa-fast codegen`: what it refuses, what fails the gate, and the stored record."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jepa_fast.commands import codegen_records
from jepa_fast.commands.codegen import Codegen, run
from jepa_fast.commands.codegen_cache import Cache, default_folder
from jepa_fast.commands.errors import UsageError
from jepa_fast.commands.main import main
from jepa_fast.kernels.runtime import codegen, rooms
from jepa_fast.kernels.runtime.codegen import CodegenRecord, Job, Turn
from jepa_fast.kernels.runtime.configuration import KernelConfiguration

NAMES = ("forward/small", "forward/large", "backward/small")


def record(op: str, name: str, arch: int) -> CodegenRecord:
    return CodegenRecord(
        op=op,
        name=name,
        arch=arch,
        key=key(name, arch),
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
        turn=Turn(
            True, 200, 4096, 2048, 0, 0, {"memory": 309, "tensor": 0, "issue": 200, "special": 0}, "memory"
        ),
    )


def key(name: str, arch: int, source: str = "") -> str:
    return hashlib.sha256(f"{name} {arch} {source}".encode()).hexdigest()[:16]


@pytest.fixture
def sources() -> dict[str, str]:
    """Sources by configuration name; a change of one changes its keys."""
    return {}


@pytest.fixture
def compiled() -> list[str]:
    """What the compiler was asked for, as labels, since the test last cleared it."""
    return []


@pytest.fixture
def results() -> dict[str, Any]:
    """Changes to the records that the compiler gives, by name; a string stands for its error."""
    return {}


@pytest.fixture
def stored(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    results: dict[str, Any],
    sources: dict[str, str],
    compiled: list[str],
) -> Path:
    """One op `op` with `NAMES`, a compiler that answers at once, and the path of the stored record."""

    def compile_jobs(jobs: Iterable[Job]) -> Iterator[tuple[Job, CodegenRecord | str]]:
        for job in reversed(list(jobs)):
            compiled.append(job.label)
            changes = results.get(job.name, {})
            if isinstance(changes, str):
                yield job, changes
            else:
                own = key(job.name, job.arch, sources.get(job.name, ""))
                yield job, replace(record(job.op, job.name, job.arch), key=own, **changes)

    def compilation_key(configuration: KernelConfiguration, arch: int) -> str:
        return key(configuration.name, arch, sources.get(configuration.name, ""))

    configurations = {name: KernelConfiguration(name=name, kernel=None, signature={}) for name in NAMES}
    path = tmp_path / "results" / "codegen.json"
    monkeypatch.setattr(rooms, "names", lambda: ["op"])
    monkeypatch.setattr(codegen, "find_modules", lambda op: [f"rooms.{op}.triton_{op}"])
    monkeypatch.setattr(codegen, "configurations", lambda module: configurations)
    monkeypatch.setattr(codegen, "compile_jobs", compile_jobs)
    monkeypatch.setattr(codegen, "compilation_key", compilation_key)
    monkeypatch.setattr(codegen, "find_evidence", lambda failures: {f: [f"    {f[1]}!"] for f in failures})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(codegen_records, "stored_path", lambda: path)
    return path


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Codegen(ops=("nonsense",)), "op: expected some of op, got nonsense"),
        (Codegen(ops=("OPP",)), r"op: expected some of op, got OPP; did you mean op\?"),
        (Codegen(arch=(90, 75)), "--arch: expected some of 80, 90, 100, 120, got 75"),
        (Codegen(filter="nonsense"), "--filter: no configuration's name contains 'nonsense'"),
        (Codegen(check=True, update=True), "--check and --update exclude each other"),
        (Codegen(update=True, every=True), "--every: the stored record has the sampled configurations alone"),
        (
            Codegen(json=Path("/nonexistent/records.json")),
            "--json: /nonexistent/records.json cannot be written",
        ),
        (Codegen(check=True), "bench/results/codegen.json does not exist yet"),
    ],
)
@pytest.mark.usefixtures("stored")
def test_bad_input_is_refused(config: Codegen, message: str) -> None:
    with pytest.raises((UsageError, ValueError), match=r"^" + message):
        run(config)


@pytest.mark.usefixtures("stored")
def test_a_clean_run_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Codegen(arch=(80, 90))) == 0
    out = capsys.readouterr().out
    assert "6 compilations (6 now, 0 from the cache, 0 as recorded): passed" in out
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
    assert "1 compilations (1 now" in out
    assert "5 compilations (4 now, 1 from the cache, 0 as recorded): passed" in out


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
    assert run(Codegen(arch=(90,), update=True)) == 1
    out = capsys.readouterr().out
    assert any(line.startswith(message) for line in out.splitlines())
    assert ("    spill!" in out) == ("spills" in message)
    assert "stored record left as it was" in out
    assert not stored.exists()


@pytest.mark.usefixtures("stored")
def test_growth_fails_only_against_the_stored_record(
    results: dict[str, Any], sources: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Codegen(update=True)) == 0
    assert run(Codegen(check=True)) == 0
    results["forward/large"], sources["forward/large"] = {"registers": 111}, "changed"
    assert run(Codegen()) == 0
    capsys.readouterr()
    assert run(Codegen(check=True, arch=(90,))) == 1
    assert "op/forward/large sm_90: registers grew from 100 to 111" in capsys.readouterr().out


@pytest.mark.usefixtures("stored")
def test_a_check_compiles_what_changed_and_a_sample(
    sources: dict[str, str], compiled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Codegen(update=True)) == 0
    assert len(compiled) == 12
    compiled.clear()
    assert run(Codegen(check=True)) == 0
    assert "12 compilations (8 now, 0 from the cache, 4 as recorded): passed" in capsys.readouterr().out
    kernels = {(label.split("/")[1], label.split()[1]) for label in compiled}
    assert len(kernels) == len(compiled) == 8  # of two kernels on four architectures, one form each
    sample = list(compiled)
    compiled.clear()
    sources["forward/small"] = "changed"
    assert run(Codegen(check=True)) == 0
    assert {f"op/forward/small sm_{arch}" for arch in (80, 90, 100, 120)} <= set(compiled)
    compiled.clear()
    del sources["forward/small"]
    assert run(Codegen(check=True)) == 0
    assert compiled == sample
    compiled.clear()
    assert run(Codegen(check=True, fresh=True)) == 0
    assert len(compiled) == 12


def test_a_forged_record_is_caught(
    stored: Path, compiled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Codegen(update=True)) == 0
    compiled.clear()
    assert run(Codegen(check=True, arch=(90,))) == 0
    sampled = compiled[0]
    content = json.loads(stored.read_text())
    (forged,) = [r for r in content["records"] if f"op/{r['name']} sm_{r['arch']}" == sampled]
    forged["registers"], forged["turn"]["bound"] = 40, "tensor"
    stored.write_text(json.dumps(content))
    capsys.readouterr()
    assert run(Codegen(check=True, arch=(90,))) == 1
    assert (
        f"{sampled}: the stored record is not what this source compiles to: registers 40, compiled 100; "
        "turn: bound tensor, compiled memory" in capsys.readouterr().out
    )


def test_a_recorded_spill_fails_though_nothing_changed(
    stored: Path, compiled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Codegen(update=True)) == 0
    compiled.clear()
    assert run(Codegen(check=True, arch=(90,), filter="forward")) == 0
    content = json.loads(stored.read_text())
    (kept,) = {"op/forward/small sm_90", "op/forward/large sm_90"} - set(compiled)
    next(r for r in content["records"] if f"op/{r['name']} sm_{r['arch']}" == kept)["stack_bytes"] = 8
    stored.write_text(json.dumps(content))
    assert run(Codegen(check=True, arch=(90,), filter="forward")) == 1
    assert f"{kept}: spills: 8 B of stack" in capsys.readouterr().out


@pytest.mark.usefixtures("stored")
def test_a_second_run_comes_from_the_cache(
    sources: dict[str, str], compiled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Codegen(arch=(90,))) == 0
    compiled.clear()
    assert run(Codegen(arch=(90,))) == 0
    assert compiled == []
    assert "3 compilations (0 now, 3 from the cache, 0 as recorded): passed" in capsys.readouterr().out
    sources["backward/small"] = "changed"
    assert run(Codegen(arch=(90,))) == 0
    assert compiled == ["op/backward/small sm_90"]
    compiled.clear()
    assert run(Codegen(arch=(90,), fresh=True)) == 0
    assert len(compiled) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"op": "op"}', "\x00", None])
@pytest.mark.usefixtures("stored")
def test_a_corrupt_cache_entry_is_ignored(compiled: list[str], content: str | None) -> None:
    assert run(Codegen(arch=(90,))) == 0
    entry = default_folder() / f"{key('forward/small', 90)}.json"
    other = default_folder() / f"{key('forward/large', 90)}.json"
    entry.write_text(other.read_text() if content is None else content)  # None: a record of another key
    compiled.clear()
    assert run(Codegen(arch=(90,))) == 0
    assert compiled == ["op/forward/small sm_90"]
    compiled.clear()
    assert run(Codegen(arch=(90,))) == 0
    assert compiled == []
    assert {path.suffix for path in default_folder().iterdir()} == {".json"}


@pytest.mark.usefixtures("stored")
def test_no_cache_where_none_can_be(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [run(Codegen(arch=(90,))) for _ in range(2)] == [0, 0]
    assert len(compiled) == 6
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification has ignored
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "jepa_fast" / "codegen"


def test_old_cache_entries_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for name, arch in (("old", 80), ("new", 90)):
        cache.put(record("op", name, arch))
    os.utime(tmp_path / f"{key('old', 80)}.json", (0, 0))
    cache.prune()
    assert cache.get(key("old", 80), "op", "old") is None
    assert cache.get(key("new", 90), "room", "name") == replace(
        record("op", "new", 90), op="room", name="name"
    )


@pytest.mark.usefixtures("stored")
def test_an_update_says_what_changed(
    results: dict[str, Any], sources: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Codegen(update=True, arch=(80, 90))) == 0
    assert "0 changed, 6 new, 0 gone, 0 as before" in capsys.readouterr().out
    results["forward/large"], sources["forward/large"] = (
        {"registers": 130, "tensor_core": {"HGMMA": 4}},
        "changed",
    )
    assert run(Codegen(update=True, arch=(90,))) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["op/forward/large", "90", "registers", "100", "130"] in rows
    assert ["op/forward/large", "90", "tensor", "core", "none", "HGMMA:4"] in rows
    assert "1 changed, 0 new, 0 gone, 5 as before" in out


@pytest.mark.usefixtures("stored")
def test_the_roofline_is_a_row_for_each_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Codegen(roofline=True, arch=(90, 120))) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    figures = ["90", "200", "4096", "2048", "0", "0", "309/0/200/0", "memory", "25%"]
    assert [row for row in rows if row[:1] != ["kernel"] and len(row) == 10] == [
        [f"op/{name}", *figures] for name in NAMES
    ]


def test_missing_and_stale_configurations_are_named(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = [record("op", name, 90) for name in NAMES[1:]]
    codegen_records.write(stored, version(), [*kept, record("op", "gone", 90), record("op", "gone", 80)])
    assert run(Codegen(check=True, arch=(90,))) == 1
    out = capsys.readouterr().out
    assert "op/forward/small sm_90: not in the stored record" in out
    assert "op/gone sm_90: in the stored record, but no configuration any more" in out
    assert "2 failures" in out  # sm_80 was not asked for


def test_a_partial_update_keeps_the_rest(
    stored: Path, results: dict[str, Any], sources: dict[str, str]
) -> None:
    assert run(Codegen(update=True)) == 0
    results.update({name: {"registers": 90} for name in NAMES})
    sources.update(dict.fromkeys(NAMES, "changed"))
    assert run(Codegen(update=True, arch=(90,), filter="forward")) == 0
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
    assert "the stored record is from triton 3.0.0: renew it with --update" in capsys.readouterr().out
    with pytest.raises(UsageError, match="update all ops and architectures at once"):
        run(Codegen(update=True, arch=(90,)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Input data was truncated; write it anew with"),
        ("[]", "Expected `object`, got `array`; write it anew with"),
        ("\udcff", "JSON is malformed"),
        ('{"version": 2, "triton": "3.7.1", "records": [{"op": 1}]}', "Expected `str`, got `int`"),
        (
            '{"version": 1, "triton": "3.7.1", "records": []}',
            "format version 1 is older than 2; write it anew with",
        ),
        ('{"version": 3, "other": 0}', "format version 3 is newer than 2, which this jepa-fast reads"),
    ],
)
def test_a_record_that_cannot_be_read_is_one_line_and_exit_code_2(
    stored: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stored.parent.mkdir()
    stored.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SystemExit) as stop:
        main(["codegen", "--check"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "bench/results/codegen.json: " in line
    assert message in line


def test_an_update_replaces_what_cannot_be_read(stored: Path) -> None:
    stored.parent.mkdir()
    stored.write_text('{"version": 1}')
    with pytest.raises(UsageError, match="format version 1 is older"):
        run(Codegen(update=True, arch=(90,)))
    assert run(Codegen(update=True)) == 0
    assert len(codegen_records.read(stored).records) == 12
    stored.write_text('{"version": 3}')
    with pytest.raises(UsageError, match="format version 3 is newer"):
        run(Codegen(update=True))


@pytest.mark.usefixtures("stored")
def test_records_go_to_a_file_of_choice(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    assert run(Codegen(json=path, arch=(90,))) == 0
    assert [r.name for r in codegen_records.read(path).records] == sorted(NAMES)


def version() -> str:
    import triton

    return triton.__version__
