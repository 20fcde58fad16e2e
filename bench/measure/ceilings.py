"""What this machine reaches at best: the speed of a plain copy and of a large matrix product."""

from collections.abc import Callable
from functools import partial

import msgspec
import torch

from jepa_fast.bench.measure.compare import Times, measure_alone

# Past every cache, and large enough that a product is bound by arithmetic; on a CPU also short enough for a quick run.
COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
DTYPES = ("float32", "bfloat16")
SLOW = 0.5  # of float32's rate: what a dtype without instructions of its own does not reach


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    """copy_gbs: gigabytes a second, read and written. matmul_tflops: 10^12 operations a second, by dtype."""

    device: str
    copy_gbs: float
    matmul_tflops: dict[str, float]

    def matmul_of(self, dtype: str) -> float | None:
        """Of the dtype that a row's work is done in; of several that a row names, the last is that of its inputs."""
        known = [name for name in self.matmul_tflops if name in dtype]
        return self.matmul_tflops[max(known, key=dtype.rindex)] if known else None

    def is_slow(self, dtype: str) -> bool:
        """Whether this machine takes much longer for products of the dtype that `matmul_of` finds than in float32."""
        rate = self.matmul_of(dtype)
        return rate is not None and rate < SLOW * self.matmul_tflops["float32"]


def measure_ceilings(device: torch.device, budget_s: float = 0.4) -> Ceilings:
    """Measured, not looked up. budget_s: wall seconds of each of the three. float32 products are full float32.

    What fits into a cache can be faster than this copy: its share then is above 1.
    """
    source = torch.randn(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    copied = measure_alone(partial(target.copy_, source), device=device, budget_s=budget_s)
    products = {name: _matmul(getattr(torch, name), device, budget_s) for name in DTYPES}
    size = MATMUL_SIZE[device.type]
    return Ceilings(
        device=str(device),
        copy_gbs=2 * source.nbytes / copied.median / 1e9,
        matmul_tflops={name: 2 * size**3 / times.median / 1e12 for name, times in products.items()},
    )


def _matmul(dtype: torch.dtype, device: torch.device, budget_s: float) -> Times:
    size = MATMUL_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    call: Callable[[], object] = partial(torch.mm, a, b, out=out)
    return measure_alone(call, device=device, budget_s=budget_s)
