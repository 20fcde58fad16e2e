"""The fixed sine-cosine table against its formula, entry by entry."""

import math

import pytest
import torch

from jepa_fast.nn.positional import sincos_2d


def test_formula() -> None:
    dim, rows, columns = 16, 3, 5
    table = sincos_2d(dim, rows, columns)
    assert table.shape == (rows * columns, dim)
    assert table.dtype == torch.float32
    quarter = dim // 4
    for row in range(rows):
        for column in range(columns):
            for channel in range(dim):
                coordinate = column if channel < dim // 2 else row
                angle = coordinate * 10000.0 ** (-(channel % quarter) / quarter)
                cosine = channel % (dim // 2) >= quarter
                expected = math.cos(angle) if cosine else math.sin(angle)
                assert table[row * columns + column, channel].item() == pytest.approx(expected, abs=1e-7)


def test_halves_encode_column_and_row() -> None:
    table = sincos_2d(384, 16, 16).view(16, 16, 384)
    assert (table[..., :192] == table[:1, :, :192]).all()
    assert (table[..., 192:] == table[:, :1, 192:]).all()
    assert torch.equal(table[0, :, :192], table[:, 0, 192:])


@pytest.mark.parametrize(("dim", "rows"), [(6, 4), (0, 4), (8, 0)])
def test_wrong_sizes(dim: int, rows: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        sincos_2d(dim, rows, 4)
