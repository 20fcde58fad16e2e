"""Sequences of any lengths, packed one after another."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import MOST, check_integer, device_error

CHECK_VARIABLE = "JEPA_FAST_CHECK"


@dataclass(frozen=True, eq=False)
class Varlen:
    """Packed sequences: a query attends to the keys of its own sequence. Nothing is padded or cut.

    cu_seqlens_q, cu_seqlens_k: int32 [S + 1], contiguous; sequence s is rows cu_seqlens[s] .. cu_seqlens[s + 1].
        The first value is 0, values never fall, the last one is the number of packed tokens. The values are read
        on the device alone: `JEPA_FAST_CHECK=1` has them checked there, without a synchronisation.
    max_seqlen_q, max_seqlen_k: at least the longest sequence's length; they size the launch.
    causal: False, all of them. True, of a sequence's Lq queries and Lk keys query i sees keys j <= i + Lk - Lq: the
        last query sees every key, and where queries are more than keys the first ones see none.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    causal: bool = False

    kind: ClassVar[str] = "varlen"
    packed: ClassVar[bool] = True

    @classmethod
    def from_lengths(
        cls,
        lengths_q: Sequence[int],
        lengths_k: Sequence[int] | None = None,
        *,
        device: torch.device | str = "cpu",
        causal: bool = False,
    ) -> "Varlen":
        """From lengths on the host, at least 0; keys have those of the queries unless given."""

        def offsets(name: str, lengths: Sequence[int]) -> Tensor:
            shortest, total = min(lengths, default=0), sum(lengths)
            if shortest < 0:
                raise ValueError(f"{name}: expected lengths of at least 0, got {shortest}")
            if total > MOST:
                raise ValueError(f"{name}: expected a sum of at most 2**30, got {total}")
            starts = torch.tensor([0, *lengths])
            if starts.is_floating_point():
                raise TypeError(f"{name}: expected ints, got {starts.dtype}")
            return starts.cumsum(0).to(torch.int32).to(device, non_blocking=True)

        keys = lengths_q if lengths_k is None else lengths_k
        if len(keys) != len(lengths_q):
            raise ValueError(f"lengths_k: expected {len(lengths_q)} lengths as in lengths_q, got {len(keys)}")
        cu_seqlens_q = offsets("lengths_q", lengths_q)
        cu_seqlens_k = cu_seqlens_q if lengths_k is None else offsets("lengths_k", keys)
        return cls(cu_seqlens_q, cu_seqlens_k, max(lengths_q, default=0), max(keys, default=0), causal)

    def tensors(self) -> list[Tensor]:
        return [self.cu_seqlens_q, self.cu_seqlens_k]

    def integers(self) -> list[int]:
        return [self.max_seqlen_q, self.max_seqlen_k, int(self.causal)]

    @classmethod
    def rebuild(cls, tensors: Sequence[Tensor], integers: Sequence[int]) -> "Varlen":
        return cls(tensors[0], tensors[1], integers[0], integers[1], bool(integers[2]))

    def check(self, query: Tensor, key: Tensor) -> None:
        for name, cu_seqlens in (("cu_seqlens_q", self.cu_seqlens_q), ("cu_seqlens_k", self.cu_seqlens_k)):
            if not isinstance(cu_seqlens, Tensor):
                raise TypeError(f"{name}: expected an int32 tensor, got {type(cu_seqlens).__name__}")
            if cu_seqlens.dtype != torch.int32:
                raise TypeError(f"{name}: expected int32, got {cu_seqlens.dtype}")
            if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1 or not cu_seqlens.is_contiguous():
                raise ValueError(
                    f"{name}: expected contiguous int32 [S + 1], got {list(cu_seqlens.shape)} "
                    f"with strides {list(cu_seqlens.stride())}"
                )
            if cu_seqlens.device != query.device:
                raise device_error(name, cu_seqlens, query)
        if self.cu_seqlens_k.shape != self.cu_seqlens_q.shape:
            raise ValueError(
                f"cu_seqlens_k: expected {self.cu_seqlens_q.shape[0]} values as in cu_seqlens_q, "
                f"got {self.cu_seqlens_k.shape[0]}"
            )
        for name, length in (("max_seqlen_q", self.max_seqlen_q), ("max_seqlen_k", self.max_seqlen_k)):
            check_integer(name, length)

    def check_values(self, total_q: int, total_k: int) -> None:
        """On the CPU raise ValueError for values that do not fit. Elsewhere, if `JEPA_FAST_CHECK=1`, assert on the
        device that they do: no value comes back to the host."""
        for letter, cu_seqlens, total, longest in (
            ("q", self.cu_seqlens_q, total_q, self.max_seqlen_q),
            ("k", self.cu_seqlens_k, total_k, self.max_seqlen_k),
        ):
            if cu_seqlens.device.type == "cpu":
                _check_on_host(letter, cu_seqlens.tolist(), total, longest)
            elif os.environ.get(CHECK_VARIABLE) == "1":
                _check_on_device(letter, cu_seqlens, total, longest)

    def dense(self, query_length: int, key_length: int, device: torch.device) -> Tensor:
        sequence_q, sequence_k = (
            torch.searchsorted(cu_seqlens, torch.arange(length, device=device, dtype=torch.int32), right=True)
            for cu_seqlens, length in ((self.cu_seqlens_q, query_length), (self.cu_seqlens_k, key_length))
        )
        together = sequence_q[:, None] == sequence_k[None, :]
        if not self.causal:
            return together
        # Counted back from its sequence's end, a query sees the keys that are no nearer to the end than itself.
        from_end_q = self.cu_seqlens_q[sequence_q] - torch.arange(query_length, device=device)
        from_end_k = self.cu_seqlens_k[sequence_k] - torch.arange(key_length, device=device)
        return together & (from_end_k[None, :] >= from_end_q[:, None])


def _check_on_host(letter: str, cu_seqlens: list[int], total: int, longest: int) -> None:
    name = f"cu_seqlens_{letter}"
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != total:
        raise ValueError(
            f"{name}: expected values from 0 to the {total} packed tokens, got {cu_seqlens[0]} to {cu_seqlens[-1]}"
        )
    for place, (start, end) in enumerate(itertools.pairwise(cu_seqlens)):
        if end < start:
            raise ValueError(
                f"{name}: expected values that never fall, got {end} after {start} at [{place + 1}]"
            )
        if end - start > longest:
            raise ValueError(
                f"max_seqlen_{letter}: expected at least {end - start}, the length of sequence {place}, got {longest}"
            )


def _check_on_device(letter: str, cu_seqlens: Tensor, total: int, longest: int) -> None:
    lengths, name = cu_seqlens.diff(), f"cu_seqlens_{letter}"
    torch._assert_async(cu_seqlens[0] == 0, f"{name}: expected to start at 0")
    torch._assert_async(cu_seqlens[-1] == total, f"{name}: expected to end at the {total} packed tokens")
    torch._assert_async((lengths >= 0).all(), f"{name}: expected values that never fall")
    torch._assert_async(
        (lengths <= longest).all(),
        f"max_seqlen_{letter}: expected at least the longest sequence, got {longest}",
    )
