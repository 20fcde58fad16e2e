"""Patch embedding of the kept tokens, forward and backward, against embedding all of them and gathering; and the
embeddings of teacher and student from one pass over the pixels."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import jepa_fast
from jepa_fast.bench.baselines.patch_embed import embed_then_gather
from jepa_fast.bench.measure import Case, Trial, check_error
from jepa_fast.bench.suites.token_routing import draw_index

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DTYPES = (torch.float32, torch.bfloat16)


class Sizes(NamedTuple):
    """One network on one kind of input. kept: tokens of each mask."""

    name: str
    batch: int
    pixels: tuple[int, ...]  # height and width, of videos behind the frames
    patch: tuple[int, ...]
    dim: int
    kept: int


SMALL = Sizes("I-JEPA ViT-S/8 128", 16, (128, 128), (8, 8), 384, 64)
HUGE = Sizes("I-JEPA ViT-H/14 224", 2, (224, 224), (14, 14), 1280, 64)
CLIP = Sizes("V-JEPA ViT-S/16 clip", 2, (8, 128, 128), (2, 16, 16), 384, 64)
ON_A_GPU = (
    Sizes("I-JEPA ViT-H/14 224", 128, (224, 224), (14, 14), 1280, 68),
    Sizes("V-JEPA 2 ViT-L 256 clip", 24, (16, 256, 256), (2, 16, 16), 1024, 508),
    Sizes("V-JEPA 2 ViT-g 256 clip", 24, (16, 256, 256), (2, 16, 16), 1408, 508),
)


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        yield _case(SMALL, dtype)
        yield _case(HUGE, dtype)
        yield _case(CLIP, dtype)
        yield _case(SMALL, dtype, bytes_=True)
        yield _case(SMALL, dtype, teacher=True)
    for sizes in ON_A_GPU:
        yield _case(sizes, torch.bfloat16, needs_cuda=True)
        yield _case(sizes, torch.bfloat16, bytes_=True, needs_cuda=True)
        yield _case(sizes, torch.bfloat16, teacher=True, needs_cuda=True)


def _case(
    sizes: Sizes,
    dtype: torch.dtype,
    *,
    bytes_: bool = False,
    teacher: bool = False,
    needs_cuda: bool = False,
) -> Case:
    what = "uint8 " if bytes_ else "teacher and student " if teacher else ""
    length = _length(sizes)
    return Case(
        op="masked_patch_embed",
        shape=f"{sizes.name} {what}fwd+bwd, B={sizes.batch} K={sizes.kept} of {length} D={sizes.dim}",
        dtype=str(dtype).removeprefix("torch."),
        build=partial(_build, sizes, dtype, bytes_, teacher),
        quick=sizes is SMALL and (dtype == torch.bfloat16 or not (bytes_ or teacher)),
        needs_cuda=needs_cuda,
    )


def _build(sizes: Sizes, dtype: torch.dtype, bytes_: bool, teacher: bool, device: torch.device) -> Trial:
    random = torch.Generator().manual_seed(0)
    shape, kernel, length = (sizes.batch, 3, *sizes.pixels), (sizes.dim, 3, *sizes.patch), _length(sizes)
    pixels = (
        torch.randint(256, shape, generator=random, dtype=torch.uint8)
        if bytes_
        else torch.randn(shape, generator=random)
    ).to(device)
    # Weights are drawn in what they are multiplied in: their cast belongs to the training step, not to this op.
    weights = [(0.02 * torch.randn(kernel, generator=random)).to(device, dtype) for _ in range(1 + teacher)]
    biases = [torch.randn(sizes.dim, generator=random).to(device, dtype) for _ in weights]
    position = torch.randn(length, sizes.dim, generator=random).to(device)
    index = draw_index(sizes.batch, length, sizes.kept, random).to(device)
    upstream = torch.randn(sizes.batch, sizes.kept, sizes.dim, generator=random).to(device)
    mean, std = (MEAN, STD) if bytes_ else (None, None)

    def ours(
        weights: Sequence[Tensor], biases: Sequence[Tensor], position: Tensor, name: str
    ) -> list[Tensor]:
        embed = partial(
            jepa_fast.masked_patch_embed, position=position, dtype=weights[0].dtype, implementation=name
        )
        if not teacher:
            return [embed(pixels, weights[0], biases[0], index, mean=mean, std=std)]
        rows = jepa_fast.patchify(pixels, sizes.patch, dtype=weights[0].dtype, implementation=name)
        with torch.no_grad():
            target = embed(rows, weights[1], biases[1])
        return [embed(rows, weights[0], biases[0], index), target]

    def published(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
        embed = partial(embed_then_gather, position=position, mean=mean, std=std)
        context = embed(pixels, weights[0], biases[0], [index])
        if not teacher:
            return [context]
        with torch.no_grad():
            return [context, embed(pixels, weights[1], biases[1])]

    serve = partial(ours, position=position, name="auto")
    exact = partial(ours, position=position.double(), name="reference")
    wide, wide_biases = ([x.double() for x in own] for own in (weights, biases))
    return Trial(
        ours=partial(_differentiated, serve, weights, biases, upstream),
        check=lambda: check_error(
            _differentiated(serve, weights, biases, upstream),
            _differentiated(published, weights, biases, upstream),
            _differentiated(exact, wide, wide_biases, upstream.double()),
        ),
        implementation=jepa_fast.explain(
            "patch_embed", pixels, weights[0], biases[0], index, position=position, mean=mean, std=std
        ).chosen,
        baselines={"embed all, then gather": partial(_differentiated, published, weights, biases, upstream)},
    )


def _length(sizes: Sizes) -> int:
    length = 1
    for size, own in zip(sizes.pixels, sizes.patch, strict=True):
        length *= size // own
    return length


def _differentiated(
    call: Callable[..., list[Tensor]], weights: Sequence[Tensor], biases: Sequence[Tensor], upstream: Tensor
) -> list[Tensor]:
    """The embeddings, and the student's gradients."""
    weight, bias = (own[0].detach().requires_grad_() for own in (weights, biases))
    out = call([weight, *weights[1:]], [bias, *biases[1:]])
    return [*out, *torch.autograd.grad(out[0], (weight, bias), upstream)]
