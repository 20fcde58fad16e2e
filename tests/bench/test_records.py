"""Records come back as they were written, and say on what machine and sources they stand."""

import datetime as dt
import re
import socket
from pathlib import Path

import msgspec
import pytest

import jepa_fast.kernels
from jepa_fast.bench.measure import Machine, Record, Row, Times, fingerprint, load_record, save_record
from jepa_fast.bench.measure.records import SCHEMA_VERSION


def machine(**changes: object) -> Machine:
    values = {
        "cpu": "Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz",
        "instruction_sets": ["avx2"],
        "cores": 2,
        "threads": 2,
        "memory_gib": 8.0,
        "gpu": None,
        "gpu_driver": None,
        "system": "Linux x86_64",
        "python": "3.11.7",
        "torch": "2.13.0",
        "triton": None,
        "jepa_fast": "0.1.0",
        "git_commit": None,
        "git_dirty": None,
        "kernels_hash": "0123456789abcdef",
    }
    return Machine(**{**values, **changes})


def record() -> Record:
    timed = Row(
        suite="ema",
        op="ema_update_",
        shape="ViT-B/16 encoder",
        dtype="float32",
        device="cpu",
        implementation="native",
        baseline="I-JEPA loop",
        time=Times(0.02, 0.019, 0.03, 40),
        baseline_time=Times(0.05, 0.049, 0.08, 40),
        ratio=2.5,
        ratio_low=2.4,
        ratio_high=2.6,
        noise_floor=1.01,
        verdict="faster",
        peak_bytes=0,
        baseline_peak_bytes=2**20,
        error=1e-7,
        eager_error=1e-7,
        error_ratio=1.0,
    )
    failed = Row(
        suite="ema", op="ema_update_", shape="tiny", dtype="float32", device="cpu", reason="no library"
    )
    created = dt.datetime(2026, 11, 20, 12, 30, tzinfo=dt.UTC)
    return Record(
        created=created, command="jepa-fast bench", machine=machine(), load_average=0.2, rows=[timed, failed]
    )


def test_round_trip(tmp_path: Path) -> None:
    path = save_record(record(), tmp_path / "new" / "folder")
    assert path.name == "intel-xeon-platinum-8488c-cpu-2-40ghz-avx2-2-cores-2026-11-20-123000.json"
    assert load_record(path) == record()


def test_a_gpu_names_the_file() -> None:
    assert machine(gpu="NVIDIA H200").short_name == "nvidia-h200"


def test_generations_of_one_name_are_different_machines() -> None:
    newer = machine(instruction_sets=["avx2", "avx512f"])
    assert newer.processor == f"{newer.cpu} (avx512f)"
    assert newer.short_name != machine().short_name
    assert machine(instruction_sets=[]).processor == machine().cpu


def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    path = save_record(record(), tmp_path)
    values = msgspec.json.decode(path.read_bytes())
    values["schema_version"] = SCHEMA_VERSION + 1
    values["rows"] = "in some later form"
    path.write_bytes(msgspec.json.encode(values))
    with pytest.raises(ValueError, match=r"expected a record of schema version 2 or older, got 3"):
        load_record(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": 1}'])
def test_what_is_no_record_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json: expected a benchmark record, got: "):
        load_record(path)


def test_the_fingerprint_knows_this_machine_and_hides_its_name() -> None:
    found = fingerprint()
    assert found.cpu
    assert found.cores >= 1
    assert found.memory_gib > 0.1
    text = msgspec.json.encode(found).decode()
    assert socket.gethostname() not in re.split(r"[^\w.-]+", text)
    assert str(Path.home()) not in text


def test_the_kernel_hash_changes_with_a_source_and_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "op").mkdir()
    source = tmp_path / "op" / "cpu.cpp"
    source.write_text("int a;")
    monkeypatch.setattr(jepa_fast.kernels, "__path__", [str(tmp_path)])
    first = fingerprint().kernels_hash
    (tmp_path / "op" / "README.md").write_text("words")
    assert fingerprint().kernels_hash == first
    source.write_text("int b;")
    assert fingerprint().kernels_hash != first
