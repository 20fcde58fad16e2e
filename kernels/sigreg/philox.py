"""Directions on the unit sphere from a counter-based generator, in plain PyTorch: what every kernel reproduces.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with the seed as its key turns
counter (d // 4) * M + m into four 32-bit numbers, and those by the method of Box and Muller into the elements
d, d + 1, d + 2, d + 3 of column m, before the columns [D] are divided by their length. Nothing depends on the
device, on the number of processes, or on what was drawn before.
"""

import math

import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def directions(seed: int | Tensor, features: int, slices: int, like: Tensor) -> Tensor:
    """[features, slices] with columns of length 1, on the device and in the dtype of `like`."""
    device = like.device
    key = torch.as_tensor(seed, dtype=torch.int64, device=device).reshape(())
    counter = torch.arange(-(-features // 4) * slices, device=device)
    zero = torch.zeros_like(counter)
    r0, r1, r2, r3 = philox((counter, zero, zero, zero), key)
    normals = [*_box_muller(r0, r1), *_box_muller(r2, r3)]
    drawn = torch.stack([normal.view(-1, slices) for normal in normals], dim=1).view(-1, slices)[:features]
    return (drawn / drawn.norm(dim=0)).to(like.dtype)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor) -> tuple[Tensor, ...]:
    """Four 32-bit numbers of each counter, whose four words come as int64 in [0, 2^32). key: int64 []."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    for _ in range(ROUNDS):
        # Products wrap round at 2^64, which leaves both of their halves as they are.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, p1 & _WORD
        c2, c3 = ((p0 >> 32) & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normal numbers in float64. 24 bits of each word are used, so that kernels see the same numbers."""
    uniform = (2 * (first >> 9) + 1).double() * 2.0**-24  # odd multiples: never 0
    angle = (second >> 8).double() * (2.0 * math.pi * 2.0**-24)
    radius = torch.sqrt(-2.0 * torch.log(uniform))
    return radius * torch.cos(angle), radius * torch.sin(angle)
