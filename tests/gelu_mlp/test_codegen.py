"""The machine code of the Triton kernels, compiled without a GPU."""

import pytest

pytest.importorskip("triton")

from jepa_fast.kernels.runtime.codegen import CodegenRecord, Job, compile_jobs

MODULE = "jepa_fast.kernels.gelu_mlp.triton_gelu_mlp"
NAMES = ["gelu/bf16", "gelu_backward/bf16", "gelu_backward_recompute/bf16"]


@pytest.fixture(scope="module")
def records() -> dict[str, CodegenRecord]:
    found = {}
    for job, record in compile_jobs([Job("gelu_mlp", MODULE, name, 90) for name in NAMES], processes=1):
        assert isinstance(record, CodegenRecord), record
        found[job.name] = record
    return found


def test_each_value_moves_once_in_wide_accesses(records) -> None:
    # 16 values of a thread in the forward and 8 in the backward, which reads x and its gradient.
    assert (records[NAMES[0]].loads, records[NAMES[0]].stores) == ({128: 2}, {128: 2})
    assert records[NAMES[1]].loads == {128: 2}
    assert records[NAMES[1]].wide_stores == 1
    assert records[NAMES[2]].loads == {128: 2}
    assert records[NAMES[2]].wide_stores == 2  # gelu(before) besides: no second read


def test_no_spill(records) -> None:
    for record in records.values():
        assert (record.stack_bytes, record.local_loads, record.local_stores) == (0, 0, 0), record.label
