"""Mask samplers."""

from .multiblock import Masks, MultiBlockMasks

__all__ = ["Masks", "MultiBlockMasks"]
