"""The predictor's input, gathers and packs at the shapes of I-JEPA and V-JEPA, forward and backward, against the
published formulations."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import jepa_fast
from jepa_fast.bench.baselines.token_routing import (
    gather_masks,
    ijepa_predictor_tokens,
    indexed_predictor_tokens,
)
from jepa_fast.bench.measure import Case, Trial, check_error

# name, B, N, E * Nc, M, Np, D: the mean token counts that the published samplers give
PREDICTORS = (
    ("I-JEPA ViT-S/8 128", 16, 256, 80, 4, 44, 192),
    ("I-JEPA ViT-S/8 128", 16, 256, 80, 4, 44, 384),
)
PREDICTORS_ON_A_GPU = (
    ("I-JEPA ViT-H/14", 128, 256, 68, 4, 44, 384),
    ("I-JEPA ViT-H/16 448", 16, 784, 271, 4, 138, 384),
    ("V-JEPA ViT-L 224, set A", 24, 1568, 370, 1, 755, 384),
)
# name, B, N, kept tokens of each set, D
PACKS = (("I-JEPA ViT-S/8 context", 16, 256, (80,), 384), ("V-JEPA ViT-S clip", 4, 512, (128, 32), 384))
PACKS_ON_A_GPU = (
    ("I-JEPA ViT-H/14 context", 128, 256, (68,), 1280),
    ("V-JEPA ViT-L 224", 24, 1568, (370, 107), 1024),
    ("V-JEPA 2 ViT-g 64 frames", 6, 8192, (2128, 734), 1408),
)
DTYPES = (torch.float32, torch.bfloat16)


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for name, *sizes in PREDICTORS:
            yield _assembly_case(name, sizes, dtype, quick=sizes[-1] == 192)
        for name, batch, length, kept, dim in PACKS:
            yield _pack_case(name, (batch, length, dim), kept, dtype)
    for name, *sizes in PREDICTORS_ON_A_GPU:
        yield _assembly_case(name, sizes, torch.bfloat16, quick=False, needs_cuda=True)
    for name, batch, length, kept, dim in PACKS_ON_A_GPU:
        yield _pack_case(name, (batch, length, dim), kept, torch.bfloat16, needs_cuda=True)


def _assembly_case(
    name: str, sizes: list[int], dtype: torch.dtype, *, quick: bool, needs_cuda: bool = False
) -> Case:
    batch, length, seen, masks, hidden, dim = sizes
    return Case(
        op="assemble_predictor_tokens",
        shape=f"{name} fwd+bwd, B={batch} N={length} Nc={seen} Np={masks}x{hidden} D={dim}",
        dtype=str(dtype).removeprefix("torch."),
        build=partial(_build_assembly, sizes, dtype),
        quick=quick,
        needs_cuda=needs_cuda,
    )


def _build_assembly(sizes: list[int], dtype: torch.dtype, device: torch.device) -> Trial:
    batch, length, seen, masks, hidden, dim = sizes
    random = torch.Generator().manual_seed(0)
    context = torch.randn(batch, seen, dim, generator=random).to(device, dtype)
    # The table and the mask token stay in float32, as does the residual stream that begins here.
    position, mask_token, upstream = (
        torch.randn(shape, generator=random).to(device)
        for shape in ((length, dim), (1, 1, dim), (masks * batch, seen + hidden, dim))
    )
    context_index, target_index = (
        draw_index(rows, length, count, random).to(device)
        for rows, count in ((batch, seen), (masks * batch, hidden))
    )

    def ours(context: Tensor, mask_token: Tensor, position: Tensor, implementation: str = "auto") -> Tensor:
        return jepa_fast.assemble_predictor_tokens(
            context, context_index, target_index, position, mask_token, implementation=implementation
        )

    def published(context: Tensor, mask_token: Tensor) -> Tensor:
        return ijepa_predictor_tokens(
            context, [context_index], target_index.split(batch), position[None], mask_token
        )

    def indexed(context: Tensor, mask_token: Tensor) -> Tensor:
        return indexed_predictor_tokens(context, context_index, target_index, position, mask_token)

    def exact(context: Tensor, mask_token: Tensor) -> Tensor:
        return ours(context, mask_token, position.double(), "reference")

    inputs = (context, mask_token)
    return Trial(
        ours=partial(_differentiated, partial(ours, position=position), inputs, upstream),
        check=lambda: check_error(
            _differentiated(partial(ours, position=position), inputs, upstream),
            _differentiated(published, inputs, upstream),
            _differentiated(exact, [x.double() for x in inputs], upstream.double()),
        ),
        implementation=jepa_fast.explain(
            "token_routing", context, context_index, target_index, position, mask_token
        ).chosen,
        baselines={
            "I-JEPA eager": partial(_differentiated, published, inputs, upstream),
            "advanced indexing": partial(_differentiated, indexed, inputs, upstream),
        },
    )


def _pack_case(
    name: str,
    sizes: tuple[int, int, int],
    kept: tuple[int, ...],
    dtype: torch.dtype,
    *,
    needs_cuda: bool = False,
) -> Case:
    batch, length, dim = sizes
    op = "gather_tokens" if len(kept) == 1 else "pack_tokens"
    return Case(
        op=op,
        shape=f"{name} fwd+bwd, B={batch} N={length} K={'+'.join(map(str, kept))} D={dim}",
        dtype=str(dtype).removeprefix("torch."),
        build=partial(_build_pack, sizes, kept, dtype),
        quick=not needs_cuda,
        needs_cuda=needs_cuda,
    )


def _build_pack(
    sizes: tuple[int, int, int], kept: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Trial:
    batch, length, dim = sizes
    random = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, dim, generator=random).to(device, dtype)
    position = torch.randn(length, dim, generator=random).to(device)
    indices = [draw_index(batch, length, count, random).to(device) for count in kept]
    upstream = torch.randn(batch * sum(kept), dim, generator=random).to(device)

    def ours(x: Tensor, position: Tensor, implementation: str = "auto") -> Tensor:
        if len(indices) == 1:
            rows = jepa_fast.gather_tokens(x, indices[0], position=position, implementation=implementation)
            return rows.flatten(0, 1)
        return jepa_fast.pack_tokens(x, indices, position=position, implementation=implementation).tokens

    def published(x: Tensor) -> Tensor:
        # Every token is embedded before the gather; each set is gathered by itself.
        embedded = x + position
        return torch.cat([gather_masks(embedded, [index]).flatten(0, 1) for index in indices])

    return Trial(
        ours=partial(_differentiated, partial(ours, position=position), [x], upstream),
        check=lambda: check_error(
            _differentiated(partial(ours, position=position), [x], upstream),
            _differentiated(published, [x], upstream),
            _differentiated(
                partial(ours, position=position.double(), implementation="reference"),
                [x.double()],
                upstream.double(),
            ),
        ),
        implementation=jepa_fast.explain("token_routing", x, indices[0], position=position).chosen,
        baselines={"sum, then gather": partial(_differentiated, published, [x], upstream)},
    )


def draw_index(rows: int, length: int, count: int, random: torch.Generator) -> Tensor:
    """int64 `[rows, count]`, ascending and without repetition in a row."""
    return torch.rand(rows, length, generator=random).argsort(1)[:, :count].sort(1).values.contiguous()


def _differentiated(
    call: Callable[..., Tensor], inputs: tuple[Tensor, ...] | list[Tensor], upstream: Tensor
) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = call(*leaves)
    return out, *torch.autograd.grad(out, leaves, upstream)
