"""The native implementation against the float64 reference, with the error budget of the design."""

import pytest
import torch

from jepa_fast import masked_patch_embed, patchify
from jepa_fast.bench.measure import peak_memory

pytestmark = pytest.mark.native
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [((8, 8), (3, 4)), ((14, 14), (3, 2)), ((16, 16), (2, 2)), ((5, 7), (2, 3)), ((2, 16, 16), (2, 2, 1)),
          ((1, 4, 20), (3, 1, 2))]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("patch", "grid"), SHAPES, ids=str)
def test_patches(problem, patch, grid, dtype: torch.dtype) -> None:
    problem(patch, grid, kept=3, dtype=dtype).hold("native")
    problem(patch, grid, kept=None, dtype=dtype, pixels=torch.uint8, normalize=True).hold("native")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("pixels", [torch.uint8, *FLOATS])
@pytest.mark.parametrize("normalize", [True, False])
def test_pixels(problem, pixels: torch.dtype, dtype: torch.dtype, normalize: bool) -> None:
    problem(pixels=pixels, dtype=dtype, normalize=normalize).hold("native")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("position", [None, *FLOATS])
@pytest.mark.parametrize("bias", [True, False])
def test_positions_and_bias(problem, position, dtype: torch.dtype, bias: bool) -> None:
    for kept in (5, None):
        problem(position=position, dtype=dtype, bias=bias, kept=kept).hold("native")


@pytest.mark.parametrize("features", [1, 15, 33, 384])
def test_widths_and_channels(problem, features: int) -> None:
    # Without a bias where its gradient is a single sum: that may cancel, and has no error to compare with then.
    problem(features=features, channels=1, bias=features > 1).hold("native")
    problem(features=features, channels=4, dtype=torch.bfloat16, masks=3).hold("native")


def test_layouts(problem) -> None:
    p = problem()
    for pixels in (
        p.pixels.to(memory_format=torch.channels_last),
        p.pixels.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([p.pixels, p.pixels], 3)[..., 3:35],
        p.pixels[:1].expand(2, -1, -1, -1),
    ):
        p.pixels = pixels
        p.hold("native")
    p.index = p.index.t().contiguous().t()
    p.weight = p.weight.to(memory_format=torch.channels_last)
    p.hold("native")
    p.index = p.index[:, :1].expand(-1, 4)  # a token four times
    p.hold("native")


def test_large_enough_for_threads(problem) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        problem(grid=(12, 12), samples=4, features=192, kept=40, dtype=dtype).hold("native")


def test_normalisation_does_not_cancel(problem) -> None:
    # Folded into a bfloat16 weight, the mean would come in with an error of its own size over 256.
    p = problem(pixels=torch.uint8, normalize=True, dtype=torch.bfloat16, bias=False, position=None)
    p.pixels = (p.pixels // 32) + 124  # near the mean
    p.hold("native")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_token(problem, value: float) -> None:
    p = problem(kept=None)
    p.pixels[1, 2, 9, 17] = value  # row 1, column 2 of 4
    found = p.ours("native")(*p.leaves)
    assert (~found.isfinite()).any(-1).nonzero().tolist() == [[1, 6]]
    p = problem()
    p.pixels[...] = value
    p.pixels[0] = 1.0
    assert p.ours("native")(*p.leaves).isfinite().all((1, 2)).tolist() == [True, False, True, False]


def test_rows_serve_as_pixels(problem) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        p = problem(pixels=torch.uint8, normalize=True, dtype=dtype)
        expected = p.ours("native")(*p.leaves)
        rows = patchify(p.pixels, 8, dtype=dtype, implementation="native", **p.statistics)
        assert rows.shape == (2, 12, 192)
        found = masked_patch_embed(
            rows, p.weight, p.bias, p.index, position=p.position, implementation="native"
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_whatever_the_threads(problem, differentiated, dtype: torch.dtype) -> None:
    p = problem(grid=(12, 12), samples=4, features=192, kept=40, dtype=dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            rows = patchify(p.pixels, 8, dtype=dtype)
            _, position = differentiated(lambda x: p.ours("native")(p.weight, p.bias, x), [p.position])
            results.append((rows, position))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for found in results[1:] for a, b in zip(found, results[0], strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("patch", [(8, 8), (14, 14), (5, 7)])
def test_every_output_is_written_and_nothing_else(
    problem, poisoned_memory, patch, dtype: torch.dtype
) -> None:
    poisoned_memory("native", problem(patch, dtype=dtype, pixels=torch.uint8, normalize=True))


def test_memory_is_a_quarter_of_embedding_all(problem, differentiated) -> None:
    p = problem(grid=(16, 16), features=192, masks=1, kept=64, position=torch.float32)
    leaves = [p.weight, p.bias]
    ours = lambda: differentiated(lambda w, b: p.ours("native")(w, b, p.position), leaves)  # noqa: E731
    theirs = lambda: differentiated(lambda w, b: p.eager(w, b, p.position), leaves)  # noqa: E731
    ours()  # what is made once and kept
    assert peak_memory(ours) <= peak_memory(theirs) / 3
