"""Three-dimensional rotary positions and their tables."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime import library
from .tables import Tables

PAIRINGS = ("tiled", "interleaved")
TABLES = ("float32", "fair_autocast", "hf")
AXES = 3  # frame, row, column


@dataclass(frozen=True, eq=False)
class Rope3D:
    """Rotary positions over frame, row and column, as in V-JEPA 2 (arXiv 2506.09985, section 2.1).

    Each axis has a segment of S = 2 * floor(floor(head_dim / 3) / 2) channels; channels after the three segments pass
    through. In a segment, with frequencies w_j = base^(-2j / S), j = 0 .. S/2 - 1, and the token's coordinate p on
    the axis, neighbours x[2i] and x[2i + 1] become

        y[2i]     = x[2i]     cos(p w_a) - x[2i + 1] sin(p w_a)
        y[2i + 1] = x[2i + 1] cos(p w_b) + x[2i]     sin(p w_b)

    pairing: "tiled", the released V-JEPA 2 weights: a = 2i mod S/2 and b = (2i + 1) mod S/2, so the two have
        different angles and it is no rotation. "interleaved", V-JEPA 2.1: a = b = i, a rotation.
    positions: `[N, 3]` for all samples, `[B, N, 3]`, or `[T, 3]` for packed tokens: (frame, row, column), integer or
        fractional. Not differentiable.
    base: of the frequencies.
    table: how far the published code rounds the angles. "float32": all in float32. "hf": the exponents j / (S/2) in
        the dtype of the query, the rest in float32 (transformers under CUDA autocast). "fair_autocast": the exponents,
        frequencies, angles, cosines and sines in the dtype of the query, only the power in float32
        (facebookresearch/vjepa2 under CUDA autocast). For float32 queries all three are the same.
    dtype: takes the place of the dtype of the query in `table`; float64 makes all tables in float64, for references.

    The tables are made on first use and kept: give every layer the same object, and other positions an object of their
    own, as what is later written into `positions` is not seen.

    Raises ValueError or TypeError for positions or settings that do not fit.
    """

    positions: Tensor
    pairing: str = "tiled"
    base: float = 10000.0
    table: str = "float32"
    dtype: torch.dtype | None = None
    _made: dict[tuple[int, torch.dtype], Tables] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        positions = self.positions
        if not isinstance(positions, Tensor):
            raise TypeError(f"positions: expected a tensor, got {type(positions).__name__}")
        if positions.ndim not in (2, 3) or positions.shape[-1] != AXES:
            raise ValueError(
                f"positions: expected [N, 3], [B, N, 3] or [T, 3] (frame, row, column), got {list(positions.shape)}"
            )
        if positions.is_complex() or positions.dtype == torch.bool:
            raise TypeError(f"positions: expected integers or real numbers, got {positions.dtype}")
        if self.pairing not in PAIRINGS:
            raise ValueError(f"pairing: expected one of {', '.join(PAIRINGS)}, got {self.pairing!r}")
        if self.table not in TABLES:
            raise ValueError(f"table: expected one of {', '.join(TABLES)}, got {self.table!r}")
        if not isinstance(self.base, (int, float)) or not self.base > 0:
            raise ValueError(f"base: expected a number above 0, got {self.base!r}")

    def tables(self, head_dim: int, dtype: torch.dtype = torch.float32) -> Tables:
        """For queries and keys of `head_dim` (even) and `dtype`."""
        rounding = self.dtype or dtype
        if self.table == "float32" and self.dtype != torch.float64:
            rounding = torch.float32
        rows_per_sample = 0 if self.positions.ndim == 2 else self.positions.shape[1]
        settings = (head_dim, self.pairing, self.base, self.table, rounding)
        made = self._made.get((head_dim, rounding))
        if made is None and library.as_node(self.positions):
            # Not kept: a graph that filled the cache would be compiled anew at its second call, which finds it filled.
            cos, sin = torch.ops.jepa_fast.rope_3d_tables(self.positions.detach(), *settings)
            return Tables(cos, sin, rows_per_sample)
        if made is None:
            # Tables out of inference mode could not be saved for a backward later on.
            with torch.inference_mode(False):
                cos, sin = cosines_and_sines(self.positions, *settings)
            made = Tables(cos, sin, rows_per_sample)
            self._made[head_dim, rounding] = made
        return made


@torch.no_grad()
def cosines_and_sines(
    positions: Tensor, head_dim: int, pairing: str, base: float, table: str, rounding: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Float32 (float64 if `rounding` is) `[R, head_dim]`, with every rounding of the published code."""
    positions = positions.detach().reshape(-1, AXES)
    half = head_dim // AXES // 2  # frequencies of an axis
    working = torch.float64 if rounding == torch.float64 else torch.float32
    with torch.autocast(positions.device.type, enabled=False):
        exponent = torch.arange(half, dtype=rounding, device=positions.device) / half
        frequency = 1.0 / base ** exponent.to(working)
        if table == "fair_autocast":
            frequency = frequency.to(rounding)
            positions = positions.to(rounding) if positions.is_floating_point() else positions
        elif positions.is_floating_point():
            positions = positions.to(working)
        angle = positions[:, :, None] * frequency  # [R, 3, S / 2]
        cos, sin = (
            F.pad(_by_channel(values, pairing).to(working), (0, head_dim - AXES * 2 * half), value=rest)
            for values, rest in ((angle.cos(), 1.0), (angle.sin(), 0.0))
        )
    return cos.contiguous(), sin.contiguous()


def _by_channel(values: Tensor, pairing: str) -> Tensor:
    """`[R, 3, S / 2]` of the frequencies -> `[R, 3 S]` of the channels."""
    repeated = values.repeat(1, 1, 2) if pairing == "tiled" else values.repeat_interleave(2, 2)
    return repeated.flatten(1)
