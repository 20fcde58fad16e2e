"""The code-generation gate: each configuration of each Triton kernel, for every architecture, with no GPU."""

from .compile import WIDE_BITS, CodegenRecord, compile_configuration
from .evidence import relative
from .gate import Failure, check
from .hardware import ARCHITECTURES, THROUGHPUT
from .keys import compilation_key, dependencies
from .roofline import Turn
from .sweep import Job, compile_jobs, configurations, find_evidence, find_modules

__all__ = [
    "ARCHITECTURES",
    "THROUGHPUT",
    "WIDE_BITS",
    "CodegenRecord",
    "Failure",
    "Job",
    "Turn",
    "check",
    "compilation_key",
    "compile_configuration",
    "compile_jobs",
    "configurations",
    "dependencies",
    "find_evidence",
    "find_modules",
    "relative",
]
