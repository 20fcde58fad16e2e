from collections.abc import Iterator
from pathlib import Path

import pytest

from jepa_fast.kernels.runtime.codegen import CodegenRecord, Job, compile_jobs, configurations, find_modules
from jepa_fast.kernels.runtime.configuration import KernelConfiguration

ALL = (80, 90, 100, 120)
SAMPLES = {
    "copy/aligned": ALL,
    "copy/unaligned": ALL,
    "matmul/fits": ALL,
    "matmul/spills": (80, 90),
    "root": (90,),
    "root/unspecialised": (90,),
    "copy/static_assert": (90,),
    "copy/missing_argument": (90,),
}
KERNELS = [
    ("ema", "ema_update/float32<-float32", ALL),
    ("attention", "forward/bf16/D=64/ampere", (80,)),
    ("attention", "forward/bf16/D=64/hopper", (90,)),
    ("attention", "forward/bf16/D=64/blackwell", (100,)),
]


@pytest.fixture(scope="session")
def sample_module() -> Iterator[str]:
    """The importable name of sample_rooms/sample/triton_sample.py."""
    folder = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)  # worker processes inherit it
        (module,) = find_modules("sample", folder / "sample_rooms", "sample_rooms")
        yield module


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def compiled(sample_module: str, home: Path) -> dict[tuple[str, int], CodegenRecord | str]:
    """What compiling the samples gives, by name and architecture; kernels in this process are interpreted."""
    jobs = [Job("sample", sample_module, name, arch) for name, archs in SAMPLES.items() for arch in archs]
    for op, name, architectures in KERNELS:
        (module,) = find_modules(op)
        jobs += [Job(op, module, name, arch) for arch in architectures]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TRITON_INTERPRET", "1")
        patch.delenv("TRITON_CACHE_DIR", raising=False)
        return {(job.name, job.arch): result for job, result in compile_jobs(jobs)}


@pytest.fixture(scope="session")
def samples(sample_module: str) -> dict[str, KernelConfiguration]:
    return configurations(sample_module)
