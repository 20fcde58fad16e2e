"""Small kernels whose machine code is known beforehand, compiled for real."""

from pathlib import Path

import pytest

from jepa_fast.kernels.runtime.codegen import ARCHITECTURES, CodegenRecord, check, compile_configuration
from jepa_fast.kernels.runtime.configuration import KernelConfiguration

Compiled = dict[tuple[str, int], CodegenRecord | str]
Samples = dict[str, KernelConfiguration]


def record_of(compiled: Compiled, name: str, arch: int) -> CodegenRecord:
    record = compiled[name, arch]
    assert isinstance(record, CodegenRecord), record
    return record


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_aligned_copy_moves_128_bits(compiled: Compiled, samples: Samples, arch: int) -> None:
    record = record_of(compiled, "copy/aligned", arch)
    # 1024 values of 4 bytes by 128 threads: 2 accesses of 16 bytes each way.
    assert record.loads == {128: 2}
    assert record.stores == {128: 2}
    assert (record.stack_bytes, record.local_loads, record.local_stores, record.shared_bytes) == (0, 0, 0, 0)
    assert record.main_loop_instructions == 0
    assert record.tensor_core == {}
    assert check(record, samples["copy/aligned"]) == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_unaligned_copy_is_caught(compiled: Compiled, samples: Samples, arch: int) -> None:
    record = record_of(compiled, "copy/unaligned", arch)
    assert record.loads == record.stores == {32: 8}
    failures = check(record, samples["copy/unaligned"])
    assert len(failures) == 2
    assert "expected a 128-bit global load, the widest has 32 bits" in failures[0].message


@pytest.mark.parametrize(
    ("arch", "instruction"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA"), (120, "HMMA")]
)
def test_matrix_product_uses_tensor_cores(
    compiled: Compiled, samples: Samples, arch: int, instruction: str
) -> None:
    record = record_of(compiled, "matmul/fits", arch)
    assert list(record.tensor_core) == [instruction]
    assert record.asynchronous_copies > 0
    assert 0 < record.main_loop_instructions < record.instructions
    # Three stages of a [128, 32] and a [32, 64] bfloat16 block, less what the compiler keeps in registers.
    assert 16 * 1024 <= record.shared_bytes <= 64 * 1024
    assert check(record, samples["matmul/fits"]) == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_roofline_counts_a_turn_exactly(compiled: Compiled, arch: int) -> None:
    copy = record_of(compiled, "copy/aligned", arch).turn
    assert (copy.loop, copy.loaded_bytes, copy.stored_bytes) == (False, 4 * 1024, 4 * 1024)
    product = record_of(compiled, "matmul/fits", arch).turn
    assert product.loop
    assert product.tensor_operations == 2 * 128 * 64 * 32
    assert product.loaded_bytes == 2 * (128 + 64) * 32
    # A block of 1024 values, in as many turns at once as the compiler unrolls.
    ema = record_of(compiled, "ema_update/float32<-float32", arch).turn
    unrolled, rest = divmod(ema.stored_bytes, 4 * 1024)
    assert (unrolled > 0, rest, ema.loaded_bytes) == (True, 0, 2 * ema.stored_bytes)
    if arch != 120:
        assert (copy.bound, ema.bound) == ("memory", "memory")


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_attention_multiplies_twice_in_a_turn(compiled: Compiled, arch: int) -> None:
    family = {80: "ampere", 90: "hopper", 100: "blackwell"}[arch]
    found = record_of(compiled, f"forward/bf16/D=64/{family}", arch).turn
    block_m, block_n, head_dim = 128, 64, 64
    assert found.tensor_operations == 2 * (
        2 * block_m * block_n * head_dim
    )  # of queries and keys, and of values
    assert found.loaded_bytes == 2 * block_n * head_dim * 2  # keys and values of two bytes
    assert found.special_functions >= block_m * block_n  # exponentials


@pytest.mark.parametrize("arch", [80, 90])
def test_spills_are_caught(compiled: Compiled, samples: Samples, arch: int) -> None:
    record = record_of(compiled, "matmul/spills", arch)
    assert record.stack_bytes > 0
    assert record.local_loads > 0
    assert record.local_stores > 0
    (failure,) = check(record, samples["matmul/spills"])
    assert failure.message.startswith(
        f"sample/matmul/spills sm_{arch}: spills: {record.stack_bytes} B of stack"
    )


def test_loop_and_special_functions_are_counted(compiled: Compiled) -> None:
    record = record_of(compiled, "root", 90)
    assert record.special_functions >= 4  # one reciprocal root for each of a thread's values in a round
    assert 0 < record.main_loop_instructions < record.instructions


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("copy/static_assert", "BLOCK is too small"),
        ("copy/missing_argument", "expected every argument of the kernel once (p_in, p_out, n, BLOCK), got"),
        ("root/unspecialised", "divisible_by_16: the kernel does not specialise on n"),
    ],
)
def test_what_does_not_compile_says_why(compiled: Compiled, name: str, reason: str) -> None:
    message = compiled[name, 90]
    assert isinstance(message, str)
    assert message.startswith("does not compile: ")
    assert reason in message
    assert "\n" not in message


def test_arguments_are_checked(samples: Samples) -> None:
    with pytest.raises(ValueError, match="arch: expected one of 80, 90, 100, 120, got 75"):
        compile_configuration(samples["copy/aligned"], 75)
    interpreted = KernelConfiguration(name="interpreted", kernel=object(), signature={})
    with pytest.raises(RuntimeError, match=r"interpreted: expected a triton.JITFunction, got object"):
        compile_configuration(interpreted, 90)


@pytest.mark.usefixtures("compiled")
def test_home_folder_is_left_alone(home: Path) -> None:
    assert list(home.iterdir()) == []
