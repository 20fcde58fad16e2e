"""The code-generation gate: each configuration of each Triton kernel, for every architecture, with no GPU."""

from .compile import WIDE_BITS, CodegenRecord, compile_configuration
from .gate import check
from .hardware import ARCHITECTURES
from .sweep import Job, compile_jobs, configurations, find_modules

__all__ = [
    "ARCHITECTURES",
    "WIDE_BITS",
    "CodegenRecord",
    "Job",
    "check",
    "compile_configuration",
    "compile_jobs",
    "configurations",
    "find_modules",
]
