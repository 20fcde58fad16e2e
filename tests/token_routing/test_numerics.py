"""The native kernels against the float64 reference, with the error budget of the design."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepa_fast import assemble_predictor_tokens, gather_tokens

pytestmark = pytest.mark.native
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAIRS = [(x, position) for x in DTYPES for position in DTYPES]
WIDTHS = (1, 15, 16, 24, 33, 192, 384)
Draw = Callable[..., tuple[Tensor, ...]]
Hold = Callable[..., None]


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("features", WIDTHS)
def test_widths_and_dtypes(
    draw_gather: Draw, hold_gather: Hold, draw_assembly: Draw, hold_assembly: Hold, features: int, dtypes
) -> None:
    hold_gather(*draw_gather(features=features, dtypes=dtypes), "native")
    hold_assembly(*draw_assembly(features=features, dtypes=dtypes), "native")


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_of_the_result(draw_gather: Draw, hold_gather: Hold, draw_assembly, hold_assembly, dtype, out):
    x, index, position = draw_gather(dtypes=(dtype, torch.float32))
    hold_gather(x, index, position, "native", dtype=out)
    hold_gather(x, index, None, "native", dtype=out)
    hold_assembly(*draw_assembly(dtypes=(dtype, torch.float32)), "native", dtype=out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeated_tokens_are_summed(draw_gather: Draw, hold_gather: Hold, dtype: torch.dtype) -> None:
    hold_gather(*draw_gather(length=3, tokens=9, repeats=True, dtypes=(dtype, dtype)), "native")
    x, index, _ = draw_gather(length=5, masks=3, dtypes=(dtype, dtype))
    hold_gather(x, index[:, :1].expand(-1, 7), None, "native")


def test_without_a_position_rows_are_copied(draw_gather: Draw) -> None:
    for dtype in DTYPES:
        x, index, _ = draw_gather(dtypes=(dtype, dtype))
        found = gather_tokens(x, index, implementation="native")
        assert torch.equal(found, x[torch.arange(4)[:, None] % 2, index])


def test_layouts(draw_gather: Draw, hold_gather: Hold, draw_assembly: Draw, hold_assembly: Hold) -> None:
    x, index, position = draw_gather(samples=3)
    hold_gather(x.transpose(0, 1).contiguous().transpose(0, 1), index, position, "native")
    hold_gather(x.mT.contiguous().mT, index.t().contiguous().t(), position.t().contiguous().t(), "native")
    hold_gather(x[:1].expand(3, -1, -1), index, position[:1].expand(24, -1), "native")
    hold_gather(x[..., 3:30], index, position[:, 5:32], "native")  # misaligned rows with gaps
    context, *indices, position, mask_token = draw_assembly()
    hold_assembly(context[:, :1].expand(-1, 7, -1), *indices, position, mask_token, "native")
    hold_assembly(context[..., 3:30], *indices, position[:, 5:32], mask_token[0, 0, 1:28], "native")


def test_large_enough_for_threads(draw_gather: Draw, hold_gather: Hold, draw_assembly, hold_assembly) -> None:
    hold_gather(*draw_gather(4, 256, 3, 70, 192), "native")
    hold_assembly(*draw_assembly(4, 256, 2, 3, 40, 20, 192), "native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_whatever_the_threads(
    draw_gather: Draw, draw_assembly: Draw, differentiated: Callable[..., tuple[Tensor, ...]], dtype
) -> None:
    x, index, position = draw_gather(4, 64, 3, 70, 192, (dtype, torch.float32), repeats=True)
    context, context_index, target_index, table, mask_token = draw_assembly(
        4, 64, 2, 3, 40, 20, 192, (dtype, torch.float32)
    )

    def run() -> list[Tensor]:
        gathered = differentiated(lambda x, p: gather_tokens(x, index, position=p), (x, position))
        assembled = differentiated(
            lambda c, p, m: assemble_predictor_tokens(c, context_index, target_index, p, m, num_context=2),
            (context, table, mask_token),
        )
        return [*gathered, *assembled]

    expected = run()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(draw_gather: Draw, draw_assembly: Draw, value: float) -> None:
    x, index, position = draw_gather()
    x[1, index[1, 2], 3] = value
    found = gather_tokens(x, index, position=position, implementation="native")
    spoiled = (~found.isfinite()).nonzero().tolist()
    assert [1, 2, 3] in spoiled
    assert all(row % 2 == 1 and d == 3 for row, _, d in spoiled)
    context, *rest = draw_assembly()
    context[3, 2, 1] = value
    found = assemble_predictor_tokens(context, *rest, num_context=2, implementation="native")
    assert (~found.isfinite()).nonzero().tolist() == [[m * 4 + 3, 2, 1] for m in range(3)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 15, 384])
def test_every_output_is_written_and_nothing_else(
    draw_gather: Draw, draw_assembly: Draw, poisoned_memory: Callable[..., None], features: int, dtype
) -> None:
    options = {"features": features, "dtypes": (dtype, dtype)}
    poisoned_memory("native", draw_gather(**options), draw_assembly(**options))
