"""What the gate lets pass and what it stops, and how it finds its kernels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jepa_fast.kernels.runtime import rooms
from jepa_fast.kernels.runtime.codegen import CodegenRecord, Turn, check, configurations, find_modules
from jepa_fast.kernels.runtime.configuration import KernelConfiguration

CONFIGURATION = KernelConfiguration(name="kernel/form", kernel=None, signature={})
RECORD = CodegenRecord(
    op="op",
    name="kernel/form",
    arch=90,
    key="0123456789abcdef",
    registers=200,
    stack_bytes=0,
    local_loads=0,
    local_stores=0,
    shared_bytes=65536,
    occupancy=0.125,
    instructions=1000,
    main_loop_instructions=200,
    special_functions=8,
    asynchronous_copies=12,
    tensor_core={"HGMMA": 4},
    loads={32: 4, 128: 16},
    stores={128: 8},
    turn=Turn(
        True,
        200,
        16384,
        0,
        2**21,
        8192,
        {"memory": 256, "tensor": 512, "issue": 400, "special": 512},
        "tensor",
    ),
)


def test_the_same_record_passes() -> None:
    assert check(RECORD, CONFIGURATION, RECORD) == []


@pytest.mark.parametrize(
    ("changes", "message", "kind"),
    [
        ({"stack_bytes": 8}, "spills: 8 B of stack, 0 local loads, 0 local stores", "spill"),
        ({"local_loads": 1}, "spills: 0 B of stack, 1 local loads, 0 local stores", "spill"),
        ({"local_stores": 1}, "spills: 0 B of stack, 0 local loads, 1 local stores", "spill"),
        ({"loads": {64: 40}}, "expected a 128-bit global load, the widest has 64 bits", "load"),
        ({"stores": {}}, "expected a 128-bit global store, the widest has 0 bits", "store"),
        ({"tensor_core": {}}, "expected tensor-core instructions, found none", "tensor"),
        ({"shared_bytes": 232449}, "shared memory: 232449 B is over the limit of 232448 B per block", ""),
        (
            {"arch": 120, "shared_bytes": 101377},
            "shared memory: 101377 B is over the limit of 101376 B per block",
            "",
        ),
    ],
)
def test_a_record_fails_by_itself(changes: dict[str, Any], message: str, kind: str) -> None:
    record = replace(RECORD, **changes)
    (failure,) = check(record, replace(CONFIGURATION, expected_tensor_core=True))
    assert failure.message == f"{record.label}: {message}"
    assert failure.kind == kind


def test_no_claim_no_failure() -> None:
    silent = replace(CONFIGURATION, expected_load_bits=0, expected_store_bits=0)
    assert check(replace(RECORD, loads={8: 1}, stores={}, tensor_core={}), silent) == []


@pytest.mark.parametrize(
    ("field", "passes", "fails"),
    [
        ("registers", 220, 221),
        ("shared_bytes", 72089, 72090),
        ("instructions", 1100, 1101),
        ("main_loop_instructions", 220, 221),
    ],
)
def test_growth_stops_at_a_tenth(field: str, passes: int, fails: int) -> None:
    assert check(replace(RECORD, **{field: passes}), CONFIGURATION, RECORD) == []
    (failure,) = check(replace(RECORD, **{field: fails}), CONFIGURATION, RECORD)
    assert failure.message.endswith(f"grew from {getattr(RECORD, field)} to {fails}, past the budget")


def test_a_small_kernel_may_grow_by_one_register_unit() -> None:
    small = replace(RECORD, registers=16)
    assert check(replace(RECORD, registers=24), CONFIGURATION, small) == []
    assert len(check(replace(RECORD, registers=25), CONFIGURATION, small)) == 1


@pytest.mark.parametrize(
    ("changes", "message", "kind"),
    [
        ({"tensor_core": {}}, "tensor-core instructions: lost HGMMA, now none", "tensor"),
        ({"tensor_core": {"HMMA": 64}}, "tensor-core instructions: lost HGMMA, now HMMA", "tensor"),
        ({"asynchronous_copies": 0}, "lost its 12 asynchronous copies", "loop"),
        (
            {"loads": {32: 8, 128: 15}},
            "128-bit loads fell from 16 to 15 while narrower ones rose from 4 to 8",
            "load",
        ),
        (
            {"stores": {64: 2, 128: 7}},
            "128-bit stores fell from 8 to 7 while narrower ones rose from 0 to 2",
            "store",
        ),
    ],
)
def test_what_the_stored_record_had_must_stay(changes: dict[str, Any], message: str, kind: str) -> None:
    record = replace(RECORD, **changes)
    (failure,) = check(record, CONFIGURATION, RECORD)
    assert failure == (f"{record.label}: {message}", kind)


def test_every_kind_of_tensor_core_instruction_must_stay() -> None:
    before = replace(RECORD, arch=100, tensor_core={"HMMA": 8, "UTCHMMA": 4})
    (failure,) = check(replace(before, tensor_core={"HMMA": 12}), CONFIGURATION, before)
    assert failure.message.endswith("lost UTCHMMA, now HMMA")
    more = {"HMMA": 1, "UTCHMMA": 1, "UTCQMMA": 1}
    assert check(replace(before, tensor_core=more), CONFIGURATION, before) == []


def test_less_unrolling_is_no_loss() -> None:
    assert check(replace(RECORD, loads={32: 2, 128: 8}, stores={256: 2}), CONFIGURATION, RECORD) == []


def test_every_op_with_a_triton_kernel_lists_its_configurations() -> None:
    modules = [module for op in rooms.names() for module in find_modules(op)]
    assert {"ema", "latent_loss"} <= set(rooms.names())
    assert {module.split(".")[-2] for module in modules} >= {"ema", "latent_loss"}
    for module in modules:
        for configuration in configurations(module).values():
            assert set(configuration.divisible_by_16) <= set(configuration.signature)
            assert configuration.kernel.__name__


def test_rooms_are_found_by_folder(tmp_path: Path) -> None:
    for file in ("b/api.py", "a/api.py", "a/triton_y.py", "a/triton_x.py", "a/reference.py", "c/triton_z.py"):
        path = tmp_path / "rooms" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert rooms.names(tmp_path / "rooms") == ["a", "b"]
    assert find_modules("a", tmp_path / "rooms", "rooms") == ["rooms.a.triton_x", "rooms.a.triton_y"]
    assert find_modules("b", tmp_path / "rooms", "rooms") == []


def listing(names: list[str]) -> str:
    return f"""
from jepa_fast.kernels.runtime.configuration import KernelConfiguration

def configurations():
    return [KernelConfiguration(name=name, kernel=None, signature={{}}) for name in {names}]
"""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", r"expected a function configurations\(\)"),
        (listing([]), r"configurations\(\) lists none"),
        (listing(["a", "b", "a"]), r"configurations\(\) lists a twice"),
    ],
)
def test_a_bad_listing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, source: str, message: str
) -> None:
    name = f"triton_bad_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message):
        configurations(name)
