"""The machine code of the Triton kernels, compiled without a GPU: what a value costs in accesses and registers."""

import pytest

pytest.importorskip("triton")

from jepa_fast.kernels.runtime.codegen import CodegenRecord, Job, compile_jobs

MODULE = "jepa_fast.kernels.layer_norm.triton_layer_norm"
VALUES = 16  # of each operand, held by a thread
LOW, MIXED = "bf16-bf16-bf16", "fp32-bf16-bf16"
NAMES = [
    f"add_forward/{LOW}/BLOCK_D=2048",
    f"add_forward/{MIXED}/BLOCK_D=2048",
    "backward_stream/bf16-bf16/BLOCK_D=2048",
    f"add_backward_stream/{MIXED}/BLOCK_D=2048",
    f"add_layer_scaled_backward_stream/{MIXED}/BLOCK_D=2048",
]
ARCHITECTURES = (80, 90)


def accesses(*operand_bytes: int) -> int:
    """128-bit accesses of a thread that moves each operand once."""
    return sum(VALUES * size // 16 for size in operand_bytes)


@pytest.fixture(scope="module")
def records() -> dict[tuple[str, int], CodegenRecord]:
    jobs = [Job("layer_norm", MODULE, name, arch) for name in NAMES for arch in ARCHITECTURES]
    found = {}
    for job, record in compile_jobs(jobs, processes=1):
        assert isinstance(record, CodegenRecord), record
        found[job.name, job.arch] = record
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "read", "written"),
    [
        # x, residual, weight and bias; normalized and new_residual
        (NAMES[0], (2, 2, 4, 4), (2, 2)),
        (NAMES[1], (2, 4, 4, 4), (2, 4)),
    ],
)
def test_the_forward_moves_each_value_once(
    records, name: str, read: tuple[int, ...], written: tuple[int, ...], arch: int
) -> None:
    record = records[name, arch]
    assert record.loads == {128: accesses(*read)}
    assert record.stores == {32: 2, 128: accesses(*written)}  # mean and rstd


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "read", "written"),
    [
        # Both gradients and new_residual by asynchronous copies; the gradient of both addends.
        (NAMES[2], (2, 2, 2), (2,)),
        (NAMES[3], (2, 4, 4), (4, 2)),
    ],
)
def test_the_backward_moves_each_value_once(
    records, name: str, read: tuple[int, ...], written: tuple[int, ...], arch: int
) -> None:
    record = records[name, arch]
    # Copies stand in the text twice, ahead of the loop for its first turn and in the loop for the next; weights and the
    # rows' statistics come in between. The last stores are the sums of a program, of one row's values.
    weights, sums = accesses(4), 2 * accesses(4) // 2
    wide_copies = 2 * accesses(*read)
    assert record.loads[128] - wide_copies in (weights, weights // 2)
    assert record.asynchronous_copies == wide_copies + 4  # and of two statistics
    assert record.stores == {128: accesses(*written) + sums}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_spills(records, arch: int) -> None:
    for name in NAMES:
        record = records[name, arch]
        assert (record.stack_bytes, record.local_loads, record.local_stores) == (0, 0, 0), record.label


def test_two_programs_of_the_plain_backward_fit_a_multiprocessor(records) -> None:
    # Two of eight warps, of 64; the launcher starts as many.
    assert records[NAMES[2], 90].occupancy >= 16 / 64
    assert records[NAMES[3], 90].occupancy >= 16 / 64
