"""The Triton kernels: compiled on a GPU, through Triton's interpreter on the CPU (see tests/conftest.py)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast import assemble_predictor_tokens, gather_tokens, pack_tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bfloat16 is broken.
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
PAIRS = [(torch.float32, torch.float32), (HALF, torch.float32), (HALF, HALF)]
Draw = Callable[..., tuple[Tensor, ...]]
Hold = Callable[..., None]


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("features", [1, 33, 128, 192])
def test_widths_and_dtypes(
    draw_gather: Draw, hold_gather: Hold, draw_assembly: Draw, hold_assembly: Hold, features: int, dtypes
) -> None:
    hold_gather(*draw_gather(features=features, dtypes=dtypes, device=DEVICE), "triton")
    hold_assembly(*draw_assembly(features=features, dtypes=dtypes, device=DEVICE), "triton")


def test_more_rows_than_a_program_owns(draw_gather: Draw, hold_gather: Hold, draw_assembly, hold_assembly):
    hold_gather(*draw_gather(3, 70, 2, 67, 24, device=DEVICE), "triton")  # two blocks of the search
    # 90 targets: two parts of the mask token's gradient
    hold_assembly(*draw_assembly(3, 24, 2, 3, 7, 5, 24, device=DEVICE), "triton")


def test_repeated_tokens_and_layouts(
    draw_gather: Draw, hold_gather: Hold, draw_assembly, hold_assembly
) -> None:
    hold_gather(*draw_gather(length=3, tokens=6, repeats=True, device=DEVICE), "triton")
    x, index, position = draw_gather(samples=3, device=DEVICE)
    hold_gather(x.transpose(0, 1).contiguous().transpose(0, 1), index, None, "triton", dtype=HALF)
    hold_gather(x[..., 3:30], index.t().contiguous().t(), position[:, 5:32], "triton")
    context, *indices, position, mask_token = draw_assembly(device=DEVICE)
    hold_assembly(context[..., 3:30], *indices, position[:, 5:32], mask_token[0, 0, 1:28], "triton")


@pytest.mark.parametrize("empty", [{"tokens": 0}, {"masks": 0}, {"features": 0}, {"samples": 0}], ids=str)
def test_empty_gathers(draw_gather: Draw, differentiated, empty: dict[str, int]) -> None:
    x, index, _ = draw_gather(**empty, device=DEVICE)
    out, gradient = differentiated(lambda x: gather_tokens(x, index, implementation="triton"), [x])
    assert out.shape == (*index.shape, x.shape[2])
    assert not gradient.any()


@pytest.mark.parametrize("empty", [{"seen": 0}, {"hidden": 0}, {"masks": 0}], ids=str)
def test_empty_assemblies(draw_assembly: Draw, differentiated, empty: dict[str, int]) -> None:
    context, *indices, position, mask_token = draw_assembly(**empty, device=DEVICE)
    results = [
        differentiated(
            lambda c, m, name=name: assemble_predictor_tokens(
                c, *indices, position, m, num_context=2, implementation=name
            ),
            (context, mask_token),
        )
        for name in ("triton", "reference")
    ]
    torch.testing.assert_close(*results)


def test_a_pack_is_its_gathers(draw_gather: Draw, differentiated) -> None:
    x, index, position = draw_gather(dtypes=(HALF, torch.float32), device=DEVICE)
    indices = [index, index[:2, :3]]
    results = [
        differentiated(
            lambda x, p, name=name: pack_tokens(x, indices, position=p, implementation=name).tokens,
            (x, position),
        )
        for name in ("triton", "reference")
    ]
    torch.testing.assert_close(*results)


def test_every_output_is_written_and_nothing_else(
    draw_gather: Draw, draw_assembly: Draw, poisoned_memory
) -> None:
    poisoned_memory("triton", draw_gather(device=DEVICE), draw_assembly(device=DEVICE))


def test_an_index_outside_is_never_read(draw_gather: Draw, draw_assembly: Draw, monkeypatch) -> None:
    # As on a GPU, where the host does not look at the values.
    from jepa_fast.kernels.token_routing import triton_token_routing

    monkeypatch.setattr(triton_token_routing, "check_values", lambda *_: None)
    x, index, position = draw_gather(device=DEVICE)
    index[1, 2], index[2, 0], index[3, 4] = -1, 24, 2**40
    leaf = x.clone().requires_grad_()
    out = gather_tokens(leaf, index, position=position, implementation="triton")
    assert out.isnan().all(-1).nonzero().tolist() == [[1, 2], [2, 0], [3, 4]]
    out[out.isfinite()].sum().backward()
    assert leaf.grad.sum().item() == 17 * 33
    context, context_index, target_index, position, mask_token = draw_assembly(device=DEVICE)
    context_index[1, 2], target_index[5, 1] = -5, 2**33
    out = assemble_predictor_tokens(
        context, context_index, target_index, position, mask_token, num_context=2, implementation="triton"
    )
    spoiled = [[1, 2], [5, 2], [9, 2], [9, 8], [11, 8]]  # the mask of sample 1 with both of its contexts
    assert out.isnan().all(-1).nonzero().tolist() == spoiled
