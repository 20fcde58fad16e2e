"""Drop-in acceleration of other code bases."""

from .config import OptimizeConfig
from .functions import patch_functions_, restore_functions_
from .optimize import optimize_, restore_
from .report import Entry, Report
from .transformers import register_attention
from .verify import Verification, verify

__all__ = [
    "Entry",
    "OptimizeConfig",
    "Report",
    "Verification",
    "optimize_",
    "patch_functions_",
    "register_attention",
    "restore_",
    "restore_functions_",
    "verify",
]
