"""Many draws of `torch.randint` at once, with the numbers that single calls would give."""

import numpy as np
import torch
from torch import Generator

LARGEST_DRAW = 1 - 2**-24  # of torch.rand in float32


def integers(high: np.ndarray, generator: Generator | None) -> np.ndarray:
    """What `[torch.randint(end, (1,), generator=generator) for end in high]` would draw, int64 like `high`.

    high: exclusive ends, int64 `[n]`, from 1 to 2**28 - 1; torch draws otherwise for wider ranges.
    generator: on the CPU; None is torch's global one.

    A call takes 32 bits of the generator and their remainder by `end`; two of them are one draw of 64 bits.
    """
    pairs, odd = divmod(len(high), 2)
    bits = torch.empty(pairs, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    halves = bits.numpy().view(np.uint64)
    values = np.empty(len(high), dtype=np.int64)
    values[: 2 * pairs : 2] = halves >> np.uint64(32)
    values[1 : 2 * pairs : 2] = halves & np.uint64(0xFFFFFFFF)
    values[: 2 * pairs] %= high[: 2 * pairs]
    if odd:
        values[-1] = torch.randint(int(high[-1]), (1,), generator=generator).item()
    return values
