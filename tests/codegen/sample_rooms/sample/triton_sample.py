"""Kernels that vectorise, do not, spill, loop, use tensor cores, or do not compile."""

# mypy: allow-untyped-defs

from collections.abc import Iterable
from dataclasses import replace

import triton
import triton.language as tl

from jepa_fast.kernels.runtime.configuration import KernelConfiguration


@triton.jit
def copy_kernel(p_in, p_out, n, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK >= 32, "BLOCK is too small")
    o_block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    m_block = o_block < n  # [BLOCK]
    tl.store(p_out + o_block, tl.load(p_in + o_block, mask=m_block), mask=m_block)


@triton.jit(do_not_specialize=["n"])
def root_kernel(p_in, p_out, n, BLOCK: tl.constexpr):
    for i_start in range(0, n, BLOCK):
        o_block = i_start + tl.arange(0, BLOCK)  # [BLOCK]
        tl.store(p_out + o_block, tl.rsqrt(tl.load(p_in + o_block)))


@triton.jit
def matmul_kernel(p_a, p_b, p_c, k, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr):
    o_m, o_n, o_k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BLOCK_K)
    b_c = tl.zeros((M, N), tl.float32)  # [M, N]
    for i_k in range(0, k, BLOCK_K):
        b_a = tl.load(p_a + o_m[:, None] * k + (i_k + o_k)[None, :])  # [M, BLOCK_K]
        b_b = tl.load(p_b + (i_k + o_k)[:, None] * N + o_n[None, :])  # [BLOCK_K, N]
        b_c = tl.dot(b_a, b_b, b_c)
    tl.store(p_c + o_m[:, None] * N + o_n[None, :], b_c)


def configurations() -> Iterable[KernelConfiguration]:
    copy = KernelConfiguration(
        name="copy/aligned",
        kernel=copy_kernel,
        signature={"p_in": "*fp32", "p_out": "*fp32", "n": "i32"},
        constexprs={"BLOCK": 1024},
        divisible_by_16=("p_in", "p_out", "n"),
    )
    yield copy
    yield replace(copy, name="copy/unaligned", divisible_by_16=())
    yield replace(copy, name="copy/static_assert", constexprs={"BLOCK": 16})
    yield replace(copy, name="copy/missing_argument", constexprs={})

    root = replace(copy, name="root", kernel=root_kernel, divisible_by_16=("p_in", "p_out"))
    yield root
    yield replace(root, name="root/unspecialised", divisible_by_16=("p_in", "p_out", "n"))

    matmul = KernelConfiguration(
        name="matmul/fits",
        kernel=matmul_kernel,
        signature={"p_a": "*bf16", "p_b": "*bf16", "p_c": "*fp32", "k": "i32"},
        constexprs={"M": 128, "N": 64, "BLOCK_K": 32},
        divisible_by_16=("p_a", "p_b", "p_c", "k"),
        num_stages=3,
        expected_tensor_core=True,
    )
    yield matmul
    yield replace(matmul, name="matmul/spills", constexprs={"M": 128, "N": 256, "BLOCK_K": 32})
