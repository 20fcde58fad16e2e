"""Drop-in acceleration of other code bases."""

from .config import OptimizeConfig
from .optimize import optimize_, restore_
from .report import Entry, Report
from .transformers import register_attention

__all__ = ["Entry", "OptimizeConfig", "Report", "optimize_", "register_attention", "restore_"]
