"""Mask samplers."""

from .indices import Masks, MaskSets, Ragged, RaggedMasks
from .multiblock import MultiBlockMasks
from .tubes import IMAGE_SETS, PUBLISHED_SETS, TubeMasks, TubeSet

__all__ = [
    "IMAGE_SETS",
    "PUBLISHED_SETS",
    "MaskSets",
    "Masks",
    "MultiBlockMasks",
    "Ragged",
    "RaggedMasks",
    "TubeMasks",
    "TubeSet",
]
