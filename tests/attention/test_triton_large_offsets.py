"""Rows more than 2**31 elements into a tensor, in a sparse file that takes no memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_fast import masked_attention
from jepa_fast.kernels.attention import tiling

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton's interpreter reads the file; a GPU cannot"
)
HEAD_DIM = 16
FAR = 2**31


@pytest.fixture(autouse=True, params=["whole", "long"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "tile", lambda *_: tiling.Tile(16, 16, 4, 2, 16, 16))
    if request.param == "long":
        monkeypatch.setattr(tiling, "WHOLE", 0)


@pytest.fixture
def far(tmp_path: Path) -> Tensor:
    """float16 [2**31 + 8192], all zeros."""
    return torch.from_file(str(tmp_path / "sparse"), shared=True, size=FAR + 8192, dtype=torch.float16)


@pytest.mark.parametrize(("dimension", "rows"), [(0, 2), (0, 3), (1, 2), (2, 2)])
def test_far_rows(far: Tensor, dimension: int, rows: int) -> None:
    """A stride past 2**31, and one below it whose product is not, of a sample, a token and a head."""
    shape, strides = [1, 1, 1, HEAD_DIM], [64, 32, 16, 1]
    shape[dimension], strides[dimension] = rows, FAR // (rows - 1)
    random = torch.Generator().manual_seed(0)
    near = [torch.randn(shape, generator=random).half() for _ in range(4)]
    # One after the other at the beginning and at the end of the file.
    strided = [far.as_strided(shape, strides, place * 1024) for place in range(4)]
    for x, y in zip(strided, near, strict=True):
        x.copy_(y)
    results: list[Any] = []
    for tensors in (near, strided):
        *leaves, grad_out = (x.detach() for x in tensors)
        out = masked_attention(*(x.requires_grad_() for x in leaves), implementation="triton")
        results.append((out.detach(), *torch.autograd.grad(out, leaves, grad_out)))
    for found, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(found, expected)
