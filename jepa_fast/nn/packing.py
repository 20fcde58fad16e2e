"""Sequences of any lengths as one stream `[T, D]`: what both mask sets of a clip become in one call."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jepa_fast.kernels.attention.masks import Varlen
from jepa_fast.kernels.runtime.derivative import differentiable_once
from jepa_fast.masks import Ragged

KEPT = 64  # layouts of lengths that were seen, so that static shapes copy nothing to the device


class Packed(NamedTuple):
    """Tokens of B samples, sequence after sequence.

    ids: int64 `[T]`, the patch of each token.
    place: int64 `[T]`, sample * num_patches + patch: its row among all patches of all samples.
    lengths: of the sequences, on the host.
    """

    ids: Tensor
    place: Tensor
    lengths: tuple[int, ...]

    @property
    def varlen(self) -> Varlen:
        return varlen(self.lengths, self.ids.device)


def pack(indices: Sequence[Tensor | Ragged], batch_size: int, num_patches: int) -> Packed:
    """The rows of all `indices` one after another; row r of an index is about sample r % batch_size.

    indices: int64 `[R, K]`, or `Ragged` rows.
    """
    ids, places, lengths = [], [], []
    for index in indices:
        if isinstance(index, Ragged):
            ids.append(index.ids)
            places.append(index.rows % batch_size * num_patches + index.ids)
            lengths.append(index.lengths)
        else:
            sample = torch.arange(len(index), device=index.device) % batch_size
            ids.append(index.flatten())
            places.append((index + sample[:, None] * num_patches).flatten())
            lengths.append((index.shape[1],) * index.shape[0])
    return Packed(torch.cat(ids), torch.cat(places), tuple(itertools.chain(*lengths)))


@functools.lru_cache(maxsize=KEPT)
def varlen(lengths: tuple[int, ...], device: torch.device) -> Varlen:
    return Varlen.from_lengths(lengths, device=device)


class Joined(NamedTuple):
    """Context and target tokens of the same sequences in one stream, in each the context before the target.

    context, target: int64, the row of each context and target token in the stream.
    source, target_source: int64, the packed context (target) token that each of these rows is; None where it is the one
        of the same number.
    lengths: of the joined sequences.
    """

    context: Tensor
    target: Tensor
    source: Tensor | None
    target_source: Tensor | None
    lengths: tuple[int, ...]

    def scatter(self, context: Tensor, target: Tensor) -> Tensor:
        """Integers of the packed tokens in the order of the stream."""
        out = context.new_empty(len(self.context) + len(self.target))
        out[self.context] = context if self.source is None else context[self.source]
        out[self.target] = target if self.target_source is None else target[self.target_source]
        return out


@functools.lru_cache(maxsize=KEPT)
def join(
    context: tuple[int, ...],
    target: tuple[int, ...],
    device: torch.device,
    pairs: tuple[tuple[int, int], ...] | None = None,
) -> Joined:
    """Where the tokens of sequences with these lengths come to lie.

    pairs: the context and target sequence of each joined one; None joins them in turn.
    """
    starts, target_starts = (torch.tensor([0, *lengths]).cumsum(0).tolist() for lengths in (context, target))
    sequences = list(zip(range(len(context)), range(len(target)), strict=True)) if pairs is None else pairs
    context_rows, target_rows, source, target_source, lengths = [], [], [], [], []
    place = 0
    for c, t in sequences:
        middle, end = place + context[c], place + context[c] + target[t]
        context_rows.append(torch.arange(place, middle))
        target_rows.append(torch.arange(middle, end))
        source.append(torch.arange(starts[c], starts[c] + context[c]))
        target_source.append(torch.arange(target_starts[t], target_starts[t] + target[t]))
        lengths.append(end - place)
        place = end

    def moved(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts).to(device, non_blocking=True)

    rows = moved(context_rows), moved(target_rows)
    if pairs is None:
        return Joined(*rows, None, None, tuple(lengths))
    return Joined(*rows, moved(source), moved(target_source), tuple(lengths))


class Interleave(torch.autograd.Function):
    """Rows of `context [Tc, D]` and copies of tokens of `[S, D]` into one stream, as `Joined` says.

    counts: how many target rows each token fills, in order. The result has the type to which both promote.
    """

    @staticmethod
    def forward(ctx: Any, context: Tensor, tokens: Tensor, joined: Joined, counts: tuple[int, ...]) -> Tensor:
        ctx.joined, ctx.counts, ctx.dtypes = joined, counts, (context.dtype, tokens.dtype)
        ctx.num_context = len(context)
        dtype = torch.promote_types(context.dtype, tokens.dtype)
        out = context.new_empty(sum(joined.lengths), context.shape[1], dtype=dtype)
        rows = context if joined.source is None else context[joined.source]
        out[joined.context] = rows.to(dtype)
        for place, token in zip(joined.target.split(list(counts)), tokens, strict=True):
            out[place] = token.to(dtype)
        return out

    @staticmethod
    @differentiable_once("Interleave")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        joined: Joined = ctx.joined
        of_context = grad[joined.context]
        if joined.source is not None:
            sums = of_context.new_zeros(ctx.num_context, grad.shape[1])
            of_context = sums.index_add_(0, joined.source, of_context)
        of_tokens = torch.stack([grad[place].sum(0) for place in joined.target.split(list(ctx.counts))])
        return of_context.to(ctx.dtypes[0]), of_tokens.to(ctx.dtypes[1]), None, None
