"""Weights of the published checkpoints, of transformers, and our own, read and written."""

from .files import WeightsError
from .load import LAYOUTS, load, save

__all__ = ["LAYOUTS", "WeightsError", "load", "save"]
