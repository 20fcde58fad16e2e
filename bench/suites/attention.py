"""Attention under the masks of every JEPA, at the shapes of the published configurations, forward and backward."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import jepa_fast
from jepa_fast import BlockCausal, BlockSparse, Rope3D, Varlen
from jepa_fast.bench.baselines import attention_peers
from jepa_fast.bench.baselines.attention import (
    block_causal_mask,
    padding_mask,
    softmax_attention,
    vjepa2_attention,
    vjepa2_positions,
)
from jepa_fast.bench.baselines.attention_peers import by_head
from jepa_fast.bench.measure import Case, ErrorCheck, Trial, check_error

GRID = 16  # of patches, 256 px
STEP = 258  # tokens of a step of V-JEPA 2-AC
SHORTEST, LONGEST = 42, 99  # contexts that I-JEPA's sampler leaves of 256 tokens

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Shape:
    """mask: "none", "varlen" (of lengths drawn up to `tokens`), "steps" or "blocks". rope: a pairing."""

    name: str
    batch: int
    tokens: int
    heads: int
    dim: int
    mask: str = "none"
    rope: str | None = None
    step: int = STEP
    backward: bool = True

    def __str__(self) -> str:
        tokens = f"N={SHORTEST}..{self.tokens}" if self.mask == "varlen" else f"N={self.tokens}"
        passes = "fwd+bwd" if self.backward else "fwd"
        return f"{self.name}, {passes}, B={self.batch} {tokens} {self.heads}x{self.dim}"


ON_A_CPU = (
    Shape("V-JEPA 2 ViT-S context", 4, 512, 6, 64, rope="tiled"),
    Shape("I-JEPA ViT-S contexts", 64, LONGEST, 6, 64, mask="varlen"),
)
ON_A_CPU_SLOWER = (
    Shape("V-JEPA 2 ViT-S context, no rotation", 4, 512, 6, 64),
    Shape("V-JEPA 2.1 predictor", 4, 512, 12, 32, rope="interleaved"),
    Shape("I-JEPA predictor", 32, 112, 16, 24),
    Shape("V-JEPA 2-AC, 3 steps", 1, 3 * STEP, 4, 64, mask="steps", rope="tiled"),
    Shape("LeWorldModel predictor", 128, 3, 16, 64, mask="steps", step=1),
    Shape("sparse blocks", 1, 1024, 4, 64, mask="blocks"),
)


def _published() -> Iterator[Shape]:
    """Every published configuration, with its batch on one GPU."""
    yield Shape("I-JEPA H/14 target", 128, 256, 16, 80, backward=False)
    yield Shape("I-JEPA H/14 contexts", 128, LONGEST, 16, 80, mask="varlen")
    yield Shape("I-JEPA H/14 predictor", 512, 112, 16, 24)
    for tokens in (784, 271):
        yield Shape("I-JEPA H/16 448", 16, tokens, 16, 80, backward=tokens != 784)
    yield Shape("I-JEPA H/16 448 predictor", 64, 409, 16, 24)
    for tokens in (196, 60):
        yield Shape("I-JEPA g/16", 16, tokens, 16, 88, backward=tokens != 196)
    for name, batch, dim, sizes, predictor in (
        ("V-JEPA L 224", 24, 64, (1568, 370, 107), (1125, 1201)),
        ("V-JEPA H 384", 10, 80, (4608, 1308, 381), (3622, 3730)),
    ):
        for tokens in sizes:
            yield Shape(name, batch, tokens, 16, dim, backward=tokens != sizes[0])
        for tokens in predictor:
            yield Shape(f"{name} predictor", batch, tokens, 16, 24)
    # ViT-g has the predictor of ViT-L.
    yield Shape("V-JEPA 2 g 256", 24, 2048, 22, 64, rope="tiled", backward=False)
    for tokens in (508, 125):
        yield Shape("V-JEPA 2 g 256", 24, tokens, 22, 64, rope="tiled")
    for name, batch, heads, sizes, predictor in (
        ("V-JEPA 2 L 256", 24, 16, (2048, 508, 125), (1460, 1571)),
        ("V-JEPA 2 g 256 64 frames", 6, 22, (8192, 2128, 734), (6136, 6475)),
        ("V-JEPA 2 g 384 64 frames", 6, 22, (18432, 5989, 2429), (15048, 16160)),
    ):
        for tokens in sizes:
            yield Shape(name, batch, tokens, heads, 64, rope="tiled", backward=tokens != sizes[0])
        for tokens in predictor:
            yield Shape(f"{name} predictor", batch, tokens, 12, 32, rope="tiled")
    for steps in (7, 2):
        yield Shape("V-JEPA 2-AC", 8, steps * STEP, 16, 64, mask="steps", rope="tiled")
    yield Shape("V-JEPA 2.1 G image", 36, 256, 26, 64, rope="interleaved", backward=False)
    yield Shape("V-JEPA 2.1 G image context", 36, 47, 26, 64, rope="interleaved")
    yield Shape("V-JEPA 2.1 predictor", 36, 180, 12, 32, rope="interleaved")
    yield Shape("LeWorldModel encoder", 128, 257, 3, 64)
    yield Shape("LeWorldModel predictor", 128, 3, 16, 64, mask="steps", step=1)
    yield Shape("LeJEPA L/14 global", 1024, 257, 16, 64)
    yield Shape("LeJEPA L/14 local", 3072, 50, 16, 64)


def cases() -> Iterator[Case]:
    for shapes, quick in ((ON_A_CPU, True), (ON_A_CPU_SLOWER, False)):
        for shape in shapes:
            for dtype in (torch.float32, torch.bfloat16):
                yield _case(shape, dtype, quick=quick)
    for shape in _published():
        yield _case(shape, torch.bfloat16, quick=False, needs_cuda=True)


def _case(shape: Shape, dtype: torch.dtype, *, quick: bool, needs_cuda: bool = False) -> Case:
    build = partial(_build, shape, dtype)
    return Case("masked_attention", str(shape), dtype_name(dtype), build, quick, needs_cuda)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def token_ids(batch: int, tokens: int, random: torch.Generator) -> Tensor:
    """int64 [B, N]: in each row the tokens that a mask leaves of a clip of four times as many."""
    return torch.rand(batch, 4 * tokens, generator=random).argsort(dim=1)[:, :tokens].sort(dim=1).values


@dataclass(frozen=True)
class Problem:
    query: Tensor  # [B, N, H, D], or packed
    key: Tensor
    value: Tensor
    upstream: Tensor
    mask: Varlen | BlockCausal | BlockSparse | None
    rope: Rope3D | None
    backward: bool


def _build(shape: Shape, dtype: torch.dtype, device: torch.device) -> Trial:
    random = torch.Generator().manual_seed(0)
    lengths = [shape.tokens] * shape.batch
    mask: Varlen | BlockCausal | BlockSparse | None = None
    if shape.mask == "varlen":
        lengths = torch.randint(SHORTEST, shape.tokens + 1, (shape.batch,), generator=random).tolist()
        mask = Varlen.from_lengths(lengths, device=device)
    elif shape.mask == "steps":
        mask = BlockCausal(shape.step)
    elif shape.mask == "blocks":
        # A band of blocks with ragged edges, and some that everybody sees.
        distance = (torch.arange(shape.tokens)[:, None] - torch.arange(shape.tokens)[None, :]).abs()
        mask = BlockSparse.from_dense(((distance < 200) | (torch.arange(shape.tokens) < 64)).to(device))
    leading = (sum(lengths),) if shape.mask == "varlen" else (shape.batch, shape.tokens)
    query, key, value, upstream = (
        torch.randn(*leading, shape.heads, shape.dim, generator=random).to(device, dtype) for _ in range(4)
    )
    if shape.backward:
        query, key, value = (x.requires_grad_() for x in (query, key, value))
    rope = positions = None
    if shape.rope is not None:
        positions = vjepa2_positions(token_ids(shape.batch, shape.tokens, random).to(device), GRID, GRID)
        rope = Rope3D(torch.stack(positions, dim=-1), pairing=shape.rope)
    problem = Problem(query, key, value, upstream, mask, rope, shape.backward)
    peers = {} if positions is not None else dict(_peers(shape, problem, lengths))
    baselines = dict(_baselines(shape, problem, lengths, positions))
    if device.type == "cuda":
        baselines |= {
            name: peer for name, peer in peers.items() if shape.mask == "steps" or name != "FlexAttention"
        }
    return Trial(
        flops=_flops(shape, lengths, mask),
        bytes=_bytes(shape, lengths, dtype),
        ours=partial(_ours, problem),
        check=partial(_check, problem, shape, lengths),
        implementation=jepa_fast.explain("attention", query, key, value, mask=mask, rope=rope).chosen,
        baselines=baselines,
        on_request=peers,
    )


def _flops(
    shape: Shape, lengths: Sequence[int], mask: Varlen | BlockCausal | BlockSparse | None
) -> int | None:
    """Of the products over the pairs that the mask leaves: two forward, five backward, 2 * dim each."""
    pairs = sum(length * length for length in lengths)
    if shape.mask == "blocks":
        return None  # which blocks are visited is the kernel's choice
    if isinstance(mask, BlockCausal):
        step = torch.arange(shape.tokens) // shape.step
        pairs = shape.batch * int(((step + 1) * shape.step).clamp_max(shape.tokens).sum())
    return pairs * shape.heads * shape.dim * 2 * (7 if shape.backward else 2)


def _bytes(shape: Shape, lengths: Sequence[int], dtype: torch.dtype) -> int:
    """Each tensor once: q, k, v and output forward; backward all of them, the output's gradient and three gradients."""
    return sum(lengths) * shape.heads * shape.dim * dtype.itemsize * (4 + (8 if shape.backward else 0))


def _run(problem: Problem, attention: Callable[..., Tensor], **options: Any) -> Outputs:
    leaves = (problem.query, problem.key, problem.value)
    out = attention(*leaves, **options)
    if not problem.backward:
        return (out,)
    return out, *torch.autograd.grad(out, leaves, problem.upstream)


def _ours(problem: Problem, implementation: str = "auto") -> Outputs:
    return _run(
        problem,
        jepa_fast.masked_attention,
        mask=problem.mask,
        rope=problem.rope,
        implementation=implementation,
    )


def _baselines(
    shape: Shape, problem: Problem, lengths: Sequence[int], positions: list[Tensor] | None
) -> Iterator[tuple[str, Callable[[], Outputs]]]:
    device = problem.query.device
    dense = None
    if shape.mask == "steps":
        dense = block_causal_mask(-(-shape.tokens // shape.step), shape.step, device)
        dense = dense[: shape.tokens, : shape.tokens]
    elif shape.mask == "blocks":
        assert problem.mask is not None
        dense = problem.mask.dense(shape.tokens, shape.tokens, device)
    if shape.mask == "varlen":
        yield from _padded(problem, lengths)
    elif positions is not None:
        # The published passes over masked clips repeat ids over heads before they take positions from them.
        repeated = [p[:, None].expand(-1, shape.heads, -1).contiguous() for p in positions]
        if shape.rope == "tiled":
            yield (
                "V-JEPA 2 eager",
                partial(_run, problem, partial(by_head, vjepa2_attention), positions=repeated, mask=dense),
            )
        else:
            yield (
                "V-JEPA 2.1 eager",
                partial(
                    _run,
                    problem,
                    partial(by_head, partial(vjepa2_attention, interleaved=True)),
                    positions=repeated,
                ),
            )
    else:
        sdpa = partial(by_head, F.scaled_dot_product_attention, attn_mask=dense)
        yield "SDPA" if dense is None else "SDPA, dense mask", partial(_run, problem, sdpa)
        if shape.name.startswith("I-JEPA"):
            yield "I-JEPA eager", partial(_run, problem, partial(by_head, softmax_attention))
    if device.type == "cuda" and positions is not None:
        # What fuses the published rotation best: the compiler. The attention is SDPA's still.
        compiled = torch.compile(partial(vjepa2_attention, interleaved=shape.rope == "interleaved"))
        one = [p[:, None] for p in positions or ()]
        yield (
            "V-JEPA 2 compiled",
            partial(_run, problem, partial(by_head, compiled), positions=one, mask=dense),
        )


def _padded(problem: Problem, lengths: Sequence[int]) -> Iterator[tuple[str, Callable[[], Outputs]]]:
    """Sequences padded to the longest, which is what a model would hold then; padding itself costs nothing."""
    longest, device = max(lengths), problem.query.device

    def pad(x: Tensor) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(x.detach().split(list(lengths)), batch_first=True)

    query, key, value = (pad(x).requires_grad_() for x in (problem.query, problem.key, problem.value))
    padded = Problem(query, key, value, pad(problem.upstream), None, None, problem.backward)
    sdpa = partial(by_head, F.scaled_dot_product_attention, attn_mask=padding_mask(lengths, longest, device))
    yield "SDPA, padded", partial(_run, padded, sdpa)


def _peers(
    shape: Shape, problem: Problem, lengths: Sequence[int]
) -> Iterator[tuple[str, Callable[[], Outputs]]]:
    """What other libraries offer; on a processor that is PyTorch's own, and only on request."""
    device, mask = problem.query.device, problem.mask
    found: list[tuple[str, attention_peers.Attention]] = []
    if shape.mask == "none":
        found += attention_peers.sdpa_backends(device)
    if shape.mask in ("none", "steps"):
        step = shape.step if shape.mask == "steps" else None
        found += attention_peers.flex(shape.tokens, step, device)
    if device.type == "cuda" and isinstance(mask, Varlen):
        found += attention_peers.packed(mask, lengths)
    if device.type == "cuda" and mask is None:
        found += attention_peers.unmasked()
    for name, attention in found:
        yield name, partial(_run, problem, attention)


def _check(problem: Problem, shape: Shape, lengths: Sequence[int]) -> ErrorCheck:
    """One head of the first sample or sequence against the reference in float64 and SDPA; the rest is alike."""
    packed = shape.mask == "varlen"
    part = (slice(0, lengths[0]), slice(0, 1)) if packed else (slice(0, 1), slice(None), slice(0, 1))
    ours = [x[part] for x in _ours(problem)]

    def part_of(dtype: torch.dtype) -> Problem:
        query, key, value, upstream = (
            x.detach()[part].to(dtype) for x in (problem.query, problem.key, problem.value, problem.upstream)
        )
        if packed:
            query, key, value, upstream = (x[None] for x in (query, key, value, upstream))
        query, key, value = (x.requires_grad_() for x in (query, key, value))
        rope = None
        if problem.rope is not None:
            rope = Rope3D(problem.rope.positions[:1], pairing=problem.rope.pairing, dtype=problem.query.dtype)
        return Problem(query, key, value, upstream, None if packed else problem.mask, rope, problem.backward)

    oracle = _ours(part_of(torch.float64), "reference")
    positions = None if problem.rope is None else [p[:1] for p in problem.rope.positions.unbind(-1)]
    single = Shape(
        shape.name, 1, lengths[0], 1, shape.dim, "none" if packed else shape.mask, shape.rope, shape.step
    )
    eager = next(_baselines(single, part_of(problem.query.dtype), lengths[:1], positions))[1]()
    if packed:
        ours = [x[None] for x in ours]
    return check_error(ours, eager, oracle)
