from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import assemble_predictor_tokens, gather_tokens, pack_tokens
from jepa_fast.bench.baselines.token_routing import gather_masks, ijepa_predictor_tokens
from jepa_fast.bench.measure import check_error

CANARY = 77.0
Tensors = tuple[Tensor, ...]


def _draw_gather(
    samples: int = 2,
    length: int = 24,
    masks: int = 2,
    tokens: int = 5,
    features: int = 33,
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32),
    *,
    repeats: bool = False,
    device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(samples, length, features, generator=random)
    position = torch.randn(length, features, generator=random)
    rows = masks * samples
    if repeats:
        index = torch.randint(length, (rows, tokens), generator=random)
    else:
        index = torch.rand(rows, length, generator=random).argsort(1)[:, :tokens]
    return x.to(device, dtypes[0]), index.to(device), position.to(device, dtypes[1])


@pytest.fixture
def draw_gather() -> Callable[..., Tensors]:
    """Makes (x [samples, length, features], index [masks * samples, tokens], position [length, features])."""
    return _draw_gather


def _draw_assembly(
    samples: int = 2,
    length: int = 24,
    contexts: int = 2,
    masks: int = 3,
    seen: int = 7,
    hidden: int = 5,
    features: int = 33,
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32),
    *,
    device: str = "cpu",
) -> Tensors:
    random = torch.Generator().manual_seed(0)
    context = torch.randn(contexts * samples, seen, features, generator=random)
    position = torch.randn(length, features, generator=random)
    mask_token = torch.randn(1, 1, features, generator=random)
    indices = (
        torch.rand(n * samples, length, generator=random).argsort(1)[:, :k].to(device)
        for n, k in ((contexts, seen), (masks, hidden))
    )
    return (
        context.to(device, dtypes[0]),
        *indices,
        position.to(device, dtypes[1]),
        mask_token.to(device, dtypes[1]),
    )


@pytest.fixture
def draw_assembly() -> Callable[..., Tensors]:
    """Makes (context, context_index, target_index, position, mask_token)."""
    return _draw_assembly


def _differentiated(call: Callable[..., Tensor], leaves: Sequence[Tensor | None]) -> Tensors:
    """The result and the gradients of a weighted sum of it in all leaves."""
    leaves = [x if x is None else x.detach().requires_grad_() for x in leaves]
    out = call(*leaves)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    given = [x for x in leaves if x is not None]
    return out.detach(), *torch.autograd.grad(out, given, upstream)


@pytest.fixture
def differentiated() -> Callable[..., Tensors]:
    return _differentiated


def _hold(ours: Tensors, eager: Tensors, oracle: Tensors) -> None:
    result = check_error(ours, eager, oracle)
    assert result.passed, result.reason


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


def _hold_gather(
    x: Tensor, index: Tensor, position: Tensor | None, implementation: str, **options: Any
) -> None:
    def ours(name: str, options: Any) -> Callable[..., Tensor]:
        return lambda x, position: gather_tokens(x, index, position=position, implementation=name, **options)

    def eager(x: Tensor, position: Tensor | None) -> Tensor:
        if position is not None:
            x = x + position
        return gather_masks(x, index.split(len(x))).to(options.get("dtype") or x.dtype)

    _hold(
        _differentiated(ours(implementation, options), (x, position)),
        _differentiated(eager, (x, position)),
        _differentiated(ours("reference", {}), (_double(x), _double(position))),
    )


@pytest.fixture
def hold_gather() -> Callable[..., None]:
    """Holds an implementation to the budget, forward and every gradient."""
    return _hold_gather


def _hold_assembly(
    context: Tensor,
    context_index: Tensor,
    target_index: Tensor,
    position: Tensor,
    mask_token: Tensor,
    implementation: str,
    num_context: int = 2,
    **options: Any,
) -> None:
    samples = len(context) // num_context

    def ours(name: str, options: Any) -> Callable[..., Tensor]:
        return lambda context, position, mask_token: assemble_predictor_tokens(
            context, context_index, target_index, position, mask_token,
            num_context=num_context, implementation=name, **options,
        )  # fmt: skip

    def eager(context: Tensor, position: Tensor, mask_token: Tensor) -> Tensor:
        masks = context_index.split(samples), target_index.split(samples)
        out = ijepa_predictor_tokens(context, *masks, position[None], mask_token)
        return out.to(options.get("dtype") or out.dtype)

    leaves = (context, position, mask_token)
    _hold(
        _differentiated(ours(implementation, options), leaves),
        _differentiated(eager, leaves),
        _differentiated(ours("reference", {}), [_double(x) for x in leaves]),
    )


@pytest.fixture
def hold_assembly() -> Callable[..., None]:
    """Holds an implementation to the budget, forward and every gradient."""
    return _hold_assembly


def _poisoned_memory(implementation: str, gather: Tensors, assembly: Tensors) -> None:
    rooms: list[Tensor] = []
    empty = torch.empty

    def poisoned(*shape: Any, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        wanted = empty(*shape, dtype=dtype, device="meta")
        if not dtype.is_floating_point:  # scratch
            return empty(*shape, dtype=dtype, device=device)
        room = torch.full((wanted.numel() + 64,), torch.nan, dtype=dtype, device=device)
        room[:32] = room[-32:] = CANARY
        rooms.append(room)
        return room[32:-32].view(wanted.shape)

    def run() -> list[Tensor]:
        x, index, position = gather
        found = _differentiated(
            lambda x: gather_tokens(x, index, position=position, implementation=implementation), [x]
        )
        packed = _differentiated(
            lambda x: pack_tokens(x, [index, index[:, :2]], implementation=implementation).tokens, [x]
        )
        context, context_index, target_index, position, mask_token = assembly
        assembled = _differentiated(
            lambda context, mask_token: assemble_predictor_tokens(
                context, context_index, target_index, position, mask_token,
                num_context=2, implementation=implementation,
            ),
            [context, mask_token],
        )  # fmt: skip
        return [*found, *packed, *assembled]

    expected = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        found = run()
    assert len(rooms) >= 7
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.isfinite().all()
    assert all((room[:32] == CANARY).all() and (room[-32:] == CANARY).all() for room in rooms)


@pytest.fixture
def poisoned_memory() -> Callable[..., None]:
    """Checks that outputs in NaN-poisoned memory are written whole, and canaries round them are not."""
    return _poisoned_memory
