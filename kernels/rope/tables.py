"""Cosines and sines of 3-D rotary positions, one row for each token."""

from typing import NamedTuple

from torch import Tensor


class Tables(NamedTuple):
    """What kernels read of a `Rope3D`, for both pairings alike:

        out[2i]     = x[2i]     cos[2i]     - x[2i + 1] sin[2i]
        out[2i + 1] = x[2i + 1] cos[2i + 1] + x[2i]     sin[2i + 1]

    and backward its transpose, which for "tiled" pairing, where a pair has two angles, is not the inverse:

        dx[2i]     = g[2i]     cos[2i]     + g[2i + 1] sin[2i + 1]
        dx[2i + 1] = g[2i + 1] cos[2i + 1] - g[2i]     sin[2i]

    cos, sin: float32 `[R, head_dim]`, contiguous. R = N, one table shared by all samples, B * N, row b * N + n for
        token n of sample b, or T for packed tokens. Channels that no axis covers have cosine 1 and sine 0.
    rows_per_sample: 0 where all samples share the table (and for packed tokens), else N: the row of token n of sample b
        is `b * rows_per_sample + n`.
    """

    cos: Tensor
    sin: Tensor
    rows_per_sample: int
