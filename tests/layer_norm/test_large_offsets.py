"""Elements more than 2**31 elements into a tensor, in a sparse file that takes no memory."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from jepa_fast import add_layer_norm

WIDTH = 16


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter reads the file; a GPU cannot")
@pytest.mark.parametrize("implementation", [pytest.param("native", marks=pytest.mark.native), "triton"])
@pytest.mark.parametrize("rows", [2, 5])  # a stride past 2**31, and one below it whose product is not
def test_far_rows(tmp_path: Path, implementation: str, rows: int) -> None:
    far = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**31 + WIDTH, dtype=torch.float16)
    far[-WIDTH:] = torch.arange(WIDTH)
    vectors = torch.ones(WIDTH), torch.zeros(WIDTH)
    stride = 2**31 // (rows - 1)
    for shape, strides in (((rows, 1, WIDTH), (stride, WIDTH, 1)), ((1, rows, WIDTH), (WIDTH, stride, 1))):
        strided = far.as_strided(shape, strides)
        near = strided.contiguous()
        expected = _everything(near, near, vectors, implementation)
        for x, residual in ((strided, near), (near, strided)):
            for found, true in zip(_everything(x, residual, vectors, implementation), expected, strict=True):
                assert torch.equal(found, true)


def _everything(
    x: Tensor, residual: Tensor, vectors: tuple[Tensor, Tensor], implementation: str
) -> list[Tensor]:
    scale = torch.full((WIDTH,), 0.5, requires_grad=True)  # its gradient reads x again
    normalized, new = add_layer_norm(x, residual, *vectors, layer_scale=scale, implementation=implementation)
    return [normalized, new, *torch.autograd.grad(normalized.sum() + new.sum(), scale)]
