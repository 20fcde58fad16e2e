"""The machine code of the Triton kernels, compiled without a GPU."""

import pytest

pytest.importorskip("triton")

from jepa_fast.kernels.runtime.codegen import CodegenRecord, Job, compile_jobs

MODULE = "jepa_fast.kernels.sigreg.triton_sigreg"


@pytest.fixture(scope="module")
def records() -> dict[tuple[str, int], CodegenRecord]:
    """By kernel and multiples, for sm_90."""
    jobs = {
        Job("sigreg", MODULE, f"sigreg_{kernel}/J={multiples}", 90): (kernel, multiples)
        for kernel in ("sums", "slopes")
        for multiples in (10, 16)
    }
    found = {}
    for job, record in compile_jobs(jobs, processes=1):
        assert isinstance(record, CodegenRecord), record
        found[jobs[job]] = record
    return found


@pytest.mark.parametrize("kernel", ["sums", "slopes"])
def test_no_special_function_whatever_the_number_of_knots(records, kernel: str) -> None:
    assert [records[kernel, multiples].special_functions for multiples in (10, 16)] == [0, 0]


@pytest.mark.parametrize("kernel", ["sums", "slopes"])
def test_six_more_knots_cost_20_operations_on_a_value(records, kernel: str) -> None:
    # A group of five: 4 to turn its centre on and 10 products; one more: 4 and 2. Two values per thread. A sixth is
    # left to addresses and moves.
    sizes = {multiples: records[kernel, multiples].main_loop_instructions for multiples in (10, 16)}
    assert sizes[16] - sizes[10] <= 2 * 20 * 7 / 6


def test_no_spill(records) -> None:
    for record in records.values():
        assert (record.stack_bytes, record.local_loads, record.local_stores) == (0, 0, 0), record.label
